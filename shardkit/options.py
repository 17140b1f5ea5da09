"""Options, checked at the door: one typed definition of each, one kind of error.

An annotation says everything about an option: its type, its range (`msgspec.Meta`), its choices
(a `Literal`, or `OneOf` a table's names), and how the command line shows it (`Flag`). It stands in
a frozen `msgspec.Struct` (`PackOptions`) or in a function's signature (`@checked`). What does not
fit is a UsageError that names the option, what was found, what is expected and the nearest right
word, before anything is opened:

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        workers: Annotated[Positive, Flag("processes (default: 1)", "N")] = 1

    validated(Options, {"workers": 0})   # UsageError: workers ... expected a whole number from 1
    validated(Options, {"wokers": 2})    # UsageError: ... Did you mean workers?
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import msgspec

from shardkit.errors import UsageError

S = TypeVar("S", bound=msgspec.Struct)
P = ParamSpec("P")
R = TypeVar("R")

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
OptionSource = type[msgspec.Struct] | Callable[..., object]
"""What annotations are read from."""


@dataclass(frozen=True, slots=True)
class Flag:
    """How the command line shows an option."""

    help: str
    metavar: str | None = None
    group: str | None = None
    """The heading that it stands under; None: with the command's own arguments."""
    name: str | None = None
    """The flag, where it is not called as the option is: `--engine`."""
    parse: Callable[[str], object] | None = None
    """From the text to the value, where the type does not say how; raises ValueError."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """A text that is one of some names, which are asked for when they are needed.

    The names of a table: what is added to the table may be chosen at once.
    """

    names: Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Fits:
    """A value that a function says is right; `words` say what that is."""

    words: str
    test: Callable[[Any], bool]


def _is_path(path: str | Path) -> bool:
    text = str(path)
    return text != "" and "\0" not in text and is_utf8(text)


def path_of(text: str) -> Path:
    """A path as the command line names it; raises ValueError for `""` (which would be the folder
    that one is in), a NUL inside, and bytes that are no UTF-8."""
    if not _is_path(text):
        raise ValueError(f"{text!r} is not a path")
    return Path(text)


def is_utf8(text: str) -> bool:
    """Whether a text has no lone surrogates: those stand for bytes of a name that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


FilePath = Annotated[str | Path, Fits("a path, in UTF-8", _is_path)]
"""A file or folder. `""`, a NUL inside, and bytes that are no UTF-8 are none."""
FilePaths = FilePath | Annotated[Sequence[FilePath], msgspec.Meta(min_length=1)]
"""One path, or several."""


def _names_something(value: object) -> bool:
    """A hub name, a path, or an object that is no plain value."""
    plain = (int, float, complex, bytes, list, tuple, dict, set, frozenset, type, type(None))
    return bool(value) if isinstance(value, str) else not isinstance(value, plain)


TokenizerSource = Annotated[
    Any, Fits("a hub name, a folder, a tokenizer.json or a tokenizer object", _names_something)
]
ProcessorSource = Annotated[
    Any, Fits("a hub name, a folder or a processor object", _names_something)
]
TemplateSource = Annotated[
    Any, Fits("a template's name, `tokenizer`, or a .json or .jinja file", _names_something)
]


def validated(cls: type[S], given: Mapping[str, object]) -> S:
    """The options of `cls` from keyword arguments; raises UsageError."""
    refuse_unknown(given, cls)
    return chosen(cls, given)


def chosen(cls: type[S], given: Mapping[str, object]) -> S:
    """The options of `cls` from keyword arguments; those that it does not have are passed over.

    Raises UsageError for a value that does not fit, and for a missing one.
    """
    hints = hints_of(cls)
    for field in msgspec.structs.fields(cls):
        if field.required and field.name not in given:
            raise UsageError(
                f"{field.name} is missing",
                expected=describe(hints[field.name]),
                fix=f"Give {_called(field.name, hints[field.name])}.",
            )
    return cls(**{name: check(name, given[name], hints[name]) for name in hints if name in given})


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: its arguments must be what their annotations say.

    What does not fit, and a keyword that is no parameter, is a UsageError. What a function takes as
    `**options` is not looked at.
    """
    signature = inspect.signature(function)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not takes_any:
            refuse_unknown(kwargs, function)
        hints = hints_of(function)
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            is_rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            if not is_rest and name in hints:
                bound.arguments[name] = check(name, value, hints[name])
        return function(*bound.args, **bound.kwargs)

    return call


def refuse_unknown(given: Mapping[str, object], *sources: OptionSource) -> None:
    """Raise UsageError for a name that none of these has as an option."""
    known = [name for source in sources for name in hints_of(source)]
    for name in given:
        if name not in known:
            close = nearest(name, known)
            raise UsageError(
                f"there is no option {name!r}",
                fix=f"Did you mean {close}?" if close else f"The options are {', '.join(known)}.",
            )


@functools.cache
def hints_of(source: OptionSource) -> dict[str, Any]:
    """The annotation of each option, with what `Annotated` adds."""
    hints = typing.get_type_hints(source, include_extras=True)
    hints.pop("return", None)
    if not isinstance(source, type):
        parameters = inspect.signature(source).parameters
        hints = {name: hints[name] for name in parameters if name in hints}
    return hints


def check(name: str, value: object, hint: Any) -> Any:
    """The value as the option's type has it; raises UsageError when it does not fit."""
    try:
        return _fitted(value, hint)
    except _Unfit as err:
        close = nearest(value, choices_of(hint)) if isinstance(value, str) else None
        advice = f"Did you mean {close}? " if close else ""
        raise UsageError(
            f"{name} has a wrong value",
            expected=describe(hint),
            found=_shown(value),
            fix=f"{advice}Correct {_called(name, hint)}.",
        ) from err


def nearest_path(path: Path) -> Path | None:
    """What lies in this path's folder and was probably meant; None when nothing is like it."""
    try:
        close = nearest(path.name, sorted(one.name for one in path.parent.iterdir()))
    except OSError:
        return None
    return path.with_name(close) if close else None


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant; None when none is like it."""
    known = {one.lower(): one for one in words}
    found = difflib.get_close_matches(word.lower(), known, n=1)
    return known[found[0]] if found else None


def choices_of(hint: Any) -> list[str]:
    """The texts that an option may be, when these are counted out; else nothing."""
    if typing.get_origin(hint) is typing.Literal:
        return [value for value in typing.get_args(hint) if isinstance(value, str)]
    found: list[str] = []
    for part in typing.get_args(hint):
        found += part.names() if isinstance(part, OneOf) else choices_of(part)
    return found


def flag_of(hint: Any) -> Flag | None:
    """How the command line shows the option; None when it does not."""
    return next((part for part in typing.get_args(hint) if isinstance(part, Flag)), None)


def describe(hint: Any) -> str:
    """What an option may be, in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        fits = [part for part in parts[1:] if isinstance(part, Fits)]
        if fits:
            return fits[0].words
        names = [name for part in parts[1:] if isinstance(part, OneOf) for name in part.names()]
        return _listed(names) if names else describe(parts[0]) + _range(parts[1:])
    if origin is typing.Literal:
        return _listed([str(part) for part in parts])
    if origin in (typing.Union, types.UnionType):
        return _listed(list(dict.fromkeys(describe(part) for part in parts)))
    if origin is tuple:
        return "(" + ", ".join(describe(part) for part in parts) + ")"
    for kind, words in _WORDS.items():
        if kind in (hint, origin):
            return words
    return getattr(hint, "__name__", str(hint))


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    type(None): "None",
    Any: "a value",
    Sequence: "a list",
    Mapping: "names with values",
    Callable: "something to call",
}


class _Unfit(Exception):
    """A value does not fit the type, the range or the choices of its option."""


def _fitted(value: Any, hint: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _constrained(_fitted(value, parts[0]), parts[1:])
    if origin in (typing.Union, types.UnionType):
        return _first_fit(value, parts)
    if origin is typing.Literal:
        return _kept(value, any(value == one and type(value) is type(one) for one in parts))
    if origin is tuple:
        _kept(value, isinstance(value, tuple | list) and len(value) == len(parts))
        return tuple(_fitted(one, part) for one, part in zip(value, parts, strict=True))
    if origin in (Sequence, Collection, list):
        _kept(value, isinstance(value, Sequence) and not isinstance(value, str | bytes))
        return [_fitted(one, parts[0]) for one in value]
    if hint in _PLAIN:
        return _PLAIN[hint](value)
    if hint is Any or hint is object:
        return _kept(value, value is not None)
    if origin is Callable or hint is Callable:
        return _kept(value, callable(value))
    return _kept(value, isinstance(value, origin or hint))


def _first_fit(value: Any, hints: Sequence[Any]) -> Any:
    """The value as the first of several types that it fits; raises _Unfit."""
    for hint in hints:
        try:
            return _fitted(value, hint)
        except _Unfit:
            continue
    raise _Unfit


def _constrained(value: Any, marks: Sequence[Any]) -> Any:
    for mark in marks:
        if isinstance(mark, msgspec.Meta) and value is not None:
            _kept(value, mark.ge is None or value >= mark.ge)
            _kept(value, mark.gt is None or value > mark.gt)
            _kept(value, mark.le is None or value <= mark.le)
            _kept(value, mark.lt is None or value < mark.lt)
            _kept(value, mark.min_length is None or len(value) >= mark.min_length)
        elif isinstance(mark, OneOf):
            _kept(value, value is None or value in set(mark.names()))
        elif isinstance(mark, Fits):
            _kept(value, mark.test(value))
    return value


def _kept(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Unfit
    return value


def _whole(value: Any) -> int:
    """An int; NumPy's too, but no bool and no float, also when it is whole."""
    if isinstance(value, bool):
        raise _Unfit
    try:
        return operator.index(value)
    except TypeError as err:
        raise _Unfit from err


def _number(value: Any) -> float:
    """A float, from an int or NumPy's numbers too; no bool, no text, no NaN, nothing infinite."""
    is_number = hasattr(value, "__float__") and not isinstance(value, bool)
    try:
        number = float(_kept(value, is_number))
    except (TypeError, ValueError, OverflowError) as err:
        raise _Unfit from err
    if not math.isfinite(number):
        raise _Unfit
    return number


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    bool: lambda value: _kept(value, isinstance(value, bool)),
    str: lambda value: str(_kept(value, isinstance(value, str))),
    Path: lambda value: Path(_kept(value, isinstance(value, str | Path))),
    type(None): lambda value: _kept(value, value is None),
}


def _range(marks: Sequence[Any]) -> str:
    for mark in marks:
        if isinstance(mark, msgspec.Meta):
            if mark.le is not None:
                return f" from {mark.ge} to {mark.le}"
            if mark.ge is not None:
                return f" from {mark.ge}"
            if mark.gt is not None:
                return f" above {mark.gt}"
    return ""


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words)


def _called(name: str, hint: Any) -> str:
    """The option's name, and its flag when the command has one."""
    flag = flag_of(hint)
    return f"{name} ({flag.name or flag_name(name)})" if flag else name


def flag_name(name: str) -> str:
    """The flag of an option, when it has no other: max_length is --max-length."""
    return "--" + name.replace("_", "-")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # somebody else's __repr__
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
