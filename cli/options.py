"""Typed options on the command line: flags from fields, and parsers that say what was meant."""

from __future__ import annotations

import argparse
import math
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from shardkit import units
from shardkit.options import (
    Flag,
    OptionSource,
    choices_of,
    flag_name,
    flag_of,
    hints_of,
    path_of,
)
from shardkit.units import count_of

from .habits import option_meant, value_meant

_MANY = 4
"""More choices than these are listed in an option's help instead of its usage."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are two lines: what is wrong, and what was meant."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; an unknown option is told before one that is missing (it may be the same)."""
        words = self._spelled(sys.argv[1:] if args is None else args)
        for word in words:
            if word == "--":
                break
            name = word.partition("=")[0]
            if word[:1] == "-" and word[1:2].isalpha():
                name = word[:2]
            elif not name.startswith("--"):
                continue
            if not self._meant_by(name):
                has_inputs = any(not action.option_strings for action in self._actions)
                known = self._option_string_actions
                advice = option_meant(name, known, has_inputs=has_inputs)
                self.error(f"there is no option {name}{advice}")
        return super().parse_known_args(words, namespace)

    def _spelled(self, args: Sequence[str]) -> list[str]:
        """The words with --max_length as --max-length, where there is such an option."""
        words = list(args)
        for i, word in enumerate(words):
            if word == "--":
                break
            name, equals, value = word.partition("=")
            if name.startswith("--") and not self._meant_by(name):
                spelled = name.replace("_", "-")
                words[i] = (spelled if self._meant_by(spelled) else name) + equals + value
        return words

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, without the usage, and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n  See {self.prog} --help.\n")

    def meant(self, value: str, choices: Sequence[str]) -> str | None:
        """The choice that a wrong value stands for."""
        return value_meant(value, choices)

    def _meant_by(self, name: str) -> list[str]:
        """The options that a word may stand for: argparse takes beginnings too."""
        return [option for option in self._option_string_actions if option.startswith(name)]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        close = self.meant(str(value), list(map(str, action.choices)))
        advice = f": did you mean {close}?" if close else ""
        listed = ", ".join(map(str, action.choices))
        raise argparse.ArgumentError(action, f"{value!r} is none of {listed}{advice}")


def add_options(
    parser: argparse.ArgumentParser, source: OptionSource, *, only: Sequence[str] | None = None
) -> None:
    """Add a flag for each option of `source` that has one (or for those named in `only`).

    What is not given is not in the parsed arguments: the defaults stand in one place.
    """
    required = _required(source)
    for name, hint in hints_of(source).items():
        flag = flag_of(hint)
        if flag is not None and (only is None or name in only):
            _add(option_group(parser, flag.group), name, flag, hint, name in required)


def given(args: argparse.Namespace, *sources: OptionSource) -> dict[str, Any]:
    """The options of these sources that the command line gave, as keyword arguments."""
    names = [name for source in sources for name in hints_of(source)]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add what a manifest does not hold, to build rows of its recipe again."""
    parser.add_argument("--image-root", type=path, metavar="DIR", help="where image paths begin")
    parser.add_argument(
        "--tokenizer", type=place, metavar="DIR_OR_NAME", help="if the dataset's own is damaged"
    )
    parser.add_argument(
        "--processor", type=place, metavar="DIR_OR_NAME", help="if the dataset was packed with one"
    )


def _required(source: OptionSource) -> set[str]:
    if not isinstance(source, type):
        return set()
    return {field.name for field in msgspec.structs.fields(source) if field.required}


def _add(
    group: argparse._ActionsContainer, name: str, flag: Flag, hint: Any, required: bool
) -> None:
    shared: dict[str, Any] = {"dest": name, "help": flag.help, "default": argparse.SUPPRESS}
    shared["required"] = required
    word = flag.name or flag_name(name)
    kinds = _kinds(hint)
    if bool in kinds:
        group.add_argument(word, action="store_true", **shared)
        return
    choices = choices_of(hint)
    if choices and int not in kinds:
        if len(choices) > _MANY:
            shared |= {"metavar": "NAME", "help": f"{', '.join(choices)}: {flag.help}"}
        group.add_argument(word, choices=choices, **shared)
        return
    is_many = typing.get_origin(hint) is not None and bool({list, dict} & _origins(hint))
    action = _Gather if is_many else "store"
    kind = _parser_of(flag, kinds)
    group.add_argument(word, type=kind, metavar=flag.metavar, action=action, **shared)


class _Gather(argparse.Action):
    """Keep what an option says each time that it is given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the values to those that are there."""
        before = getattr(namespace, self.dest, type(values)())
        added = before | values if isinstance(values, dict) else before + values
        setattr(namespace, self.dest, added)


def _origins(hint: Any) -> set[Any]:
    """The plain containers that an annotation allows: list, dict."""
    kinds = {Sequence: list, Mapping: dict}
    found = {kinds.get(typing.get_origin(hint))} - {None}
    return found.union(*map(_origins, typing.get_args(hint)))


def _parser_of(flag: Flag, kinds: set[Any]) -> Callable[[str], object]:
    if flag.parse is not None:
        return text_parser(flag.parse)
    numbers = (parse for kind, parse in _NUMBERS.items() if kind in kinds)
    return next(numbers, Path if Path in kinds and str not in kinds else str)


def number(text: str) -> int:
    """A whole number as people write it: 5000, 5k."""
    return int(text_parser(count_of)(text))  # type: ignore[call-overload, no-any-return]


_NUMBERS: dict[type, Callable[[str], object]] = {int: number, float: float}


def text_parser(parse: Callable[[str], object]) -> Callable[[str], object]:
    """`parse` as argparse wants it: a ValueError's own words are what the user reads."""

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    return parsed


count_or_auto = text_parser(units.count_or_auto)
"""A number of processes, or `auto`."""
path = text_parser(path_of)
"""A file or folder."""


def place(text: str) -> str:
    """A folder or URL, or what else is found by its name; not an empty text."""
    path(text)
    return text


def length(text: str) -> int:
    """A number of tokens from 1, as 4096 or 4k."""
    return _from_1(text, units.length_of)


def size(text: str) -> int:
    """A number of bytes from 1, as 64M."""
    return _from_1(text, units.size_of)


def codec(text: str) -> str:
    """A codec with its level, as zstd:3; UsageError for another."""
    from shardkit.format.codec import parse_compression

    parse_compression(text)
    return text


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def share(text: str) -> float:
    """A number above 0."""
    number = float(text) if text.strip() == text else math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _whole(text: str, first: int) -> int:
    try:
        value = count_of(text)
    except ValueError:
        value = first - 1
    if value < first:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {first}")
    return value


def _from_1(text: str, parse: Callable[[str], int]) -> int:
    value = text_parser(parse)(text)
    if not isinstance(value, int) or value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return value


def _kinds(hint: Any) -> set[Any]:
    """The plain types that an annotation allows."""
    parts = typing.get_args(hint)
    return {hint} if not parts else set().union(*map(_kinds, parts))


def option_group(parser: argparse.ArgumentParser, title: str | None) -> argparse._ActionsContainer:
    """The group of that title, made when it is new; the parser itself for None."""
    if title is None:
        return parser
    for group in parser._action_groups:
        if group.title == title:
            return group
    return parser.add_argument_group(title)
