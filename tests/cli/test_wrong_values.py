"""A wrong value of any option, from Python or the command, is refused before anything is opened.

The inputs, the tokenizer and the dataset are named pipes: whoever opened one would wait for ever.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from shardkit_cli.habits import _COMMANDS, _OPTIONS, _VALUES
from shardkit_cli.main import COMMANDS, main, make_parser

from shardkit import pack, verify
from shardkit.builder import append, merge, merge_datasets, repack
from shardkit.builder.build_engines import engine_options
from shardkit.builder.options import PackOptions
from shardkit.builder.repair import repair
from shardkit.errors import ShardkitError, UsageError
from shardkit.integrations.hf_export import export_hf
from shardkit.integrations.hub_folder import export_hub_folder
from shardkit.integrations.jsonl_export import export_jsonl
from shardkit.options import check, choices_of, hints_of

WRONG: tuple[object, ...] = (
    *(0, -1, 10**30, 2.5, float("nan"), float("inf"), True, None, "", "typo", "a\0b", "\udce9"),
    *(b"bytes", [], [0], (), (1,), (2, 1), {}, {"a"}, object(), int, lambda: 0),
)
RIGHT: Mapping[str, tuple[object, ...]] = {
    "system": (None, "", "typo", "a\0b", "\udce9"),
    "template": ("typo", "a\0b", "\udce9"),
    "tokenizer": ("typo", "a\0b", "\udce9"),
    "image_token": (0, -1, 10**30, "", "typo", "a\0b", "\udce9"),
    "shuffle_seed": (0,),
    "max_rejects": (0,),
    "n_retokenised": (0,),
}
"""Beside None where it stands for `not given`, and names that are looked up later."""
WAIT_S = 30


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A named pipe called as an input; the test is ended when somebody waits for it."""
    path = tmp_path / "rows.json"
    os.mkfifo(path)

    def late(*_: object) -> None:
        raise AssertionError("somebody opened the pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(WAIT_S)
    yield path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def options_of_pack() -> dict[str, Any]:
    found = {k: v for k, v in hints_of(pack).items() if k not in ("inputs", "out", "options")}
    for options in (PackOptions, *engine_options()):
        found |= hints_of(options)
    return found


def refused(call: Callable[[], object], name: str) -> bool:
    """Whether the call is a UsageError that names the option; anything foreign fails."""
    try:
        call()
    except UsageError as err:
        flag = "--" + name.replace("_", "-")
        assert name in str(err) or flag in str(err), err
        assert err.fix
        return True
    except ShardkitError:
        return False
    raise AssertionError(f"{name}: the call came to an end")


@pytest.mark.parametrize("name", options_of_pack())
def test_pack_refuses(pipe: Path, name: str) -> None:
    """Every option of pack, with every wrong value; nothing is written."""
    before, hint = sorted(pipe.parent.iterdir()), options_of_pack()[name]
    for value in WRONG:
        given: dict[str, Any] = {"tokenizer": pipe, "image_root": pipe.parent, name: value}
        is_wrong = refused(lambda: pack(pipe, pipe.parent / "out", **given), name)  # noqa: B023
        if value is not None and value not in RIGHT.get(name, ()):
            assert is_wrong or is_fine(name, value, hint), f"{name}={value!r} was taken"
    assert sorted(pipe.parent.iterdir()) == before


def is_fine(name: str, value: object, hint: Any) -> bool:
    """Whether a value of the list is right for an option because of its type."""
    kinds = kinds_of(hint)
    if callable(value):
        called = name in ("on_progress", "on_shard", "on_part", "on_rows", "progress")
        return called or (name in ANY and not isinstance(value, type))
    if type(value) is int:
        return value == 10**30 and name in BIG
    if isinstance(value, str):
        is_path = value not in ("", "a\0b", "\udce9") or Path not in kinds
        return (str in kinds or (name in ANY and value != "")) and is_path and not choices_of(hint)
    if isinstance(value, dict):
        return Mapping in kinds and not value
    if isinstance(value, list | tuple):
        return Sequence in kinds and not value
    return type(value) in kinds or (type(value) is object and name in ANY)


def kinds_of(hint: Any) -> set[Any]:
    """The types that an annotation is made of."""
    inside: set[Any] = set().union(*map(kinds_of, get_args(hint)))
    kind = get_origin(hint) or hint
    return inside | {kind} if isinstance(kind, type) else inside


ANY = ("tokenizer", "template", "processor")
"""Options that take an object of any kind, or a name."""
BIG = (
    *("workers", "max_length", "shard_size", "part_rows", "part_bytes", "max_images"),
    *("image_tokens", "max_rejects", "n_retokenised", "store_max_pixels"),
    "pad_documents_to_multiple",
)


@pytest.mark.parametrize("argument", ["inputs", "out"])
def test_pack_refuses_paths_that_are_none(pipe: Path, argument: str) -> None:
    """Also the arguments without a default."""
    for value in (0, 2.5, None, "", "a\0b", b"bytes", [], [0], {}, object()):
        if argument == "out" and value == "\udce9":
            continue
        given: dict[str, Any] = {"inputs": pipe, "out": pipe.parent / "out", argument: value}
        assert refused(lambda: pack(**given, tokenizer="x"), argument), value  # noqa: B023


CALLS: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "verify": (verify, ("PIPE",)),
    "append": (append, ("PIPE", "PIPE")),
    "merge": (merge, ("PIPE",)),
    "merge_datasets": (merge_datasets, (["PIPE", "PIPE"], "PIPE")),
    "repair": (repair, ("PIPE", ["shard-00000.tar"], ["PIPE"])),
    "repack": (repack, (["PIPE", "PIPE"], "PIPE")),
    "export_hf": (export_hf, ("PIPE", "PIPE")),
    "export_jsonl": (export_jsonl, ("PIPE", "PIPE")),
    "export_hub_folder": (export_hub_folder, ("PIPE", "PIPE")),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_other_calls_refuse(pipe: Path, call: str) -> None:
    """Every option of what else reads or makes datasets."""
    function, arguments = CALLS[call]
    put = [[pipe for _ in a] if a in (["PIPE", "PIPE"], ["PIPE"]) else a for a in arguments]
    put = [pipe if a == "PIPE" else a for a in put]
    parameters = list(hints_of(function))
    for name in parameters[len(arguments) :]:
        if name in ("more", "options"):
            continue
        hint = hints_of(function)[name]
        for value in WRONG:
            is_wrong = refused(lambda: function(*put, **{name: value}), name)  # noqa: B023
            if value is not None and value not in RIGHT.get(name, ()):
                assert is_wrong or is_fine(name, value, hint), f"{name}={value!r} was taken"
    with pytest.raises(UsageError, match="there is no option"):
        function(*put, wokers=3)


TEXTS = ("", "x", "nan", "-1", "0", "1.5", "1,,2", "=", "\udce9")
"""What is tried as the value of every option of every command."""
FREE = (
    *("--tokenizer", "--processor", "--template", "--system", "--ray-address", "--compare"),
    *("--title", "--license", "--language", "--sample", "--source", "--cost-model"),
    "--image-token",
)
"""Options whose value is a text or a name: what it names is looked up later."""
MAY_BE_EMPTY = (
    *("--system", "--title", "--license", "--language", "--ray-address", "--image-token"),
)


def flags() -> Iterator[tuple[str, str]]:
    """Every option of every command that takes a value."""
    for command in COMMANDS:
        for action in make_parser(command)._actions:
            if action.option_strings and action.nargs != 0:
                yield command, action.option_strings[-1]


def words_of(command: str, flag: str, value: str, pipe: Path) -> list[str]:
    """A command line that is right but for this value."""
    parser = make_parser(command)
    words = [command]
    for action in parser._actions:
        is_needed = action.required and action.option_strings and flag not in action.option_strings
        if is_needed:
            words += [action.option_strings[-1], str(next(iter(action.choices or ["1"])))]
    words += [flag, value, "--"]
    for action in parser._actions:
        if not action.option_strings:
            words += [str(pipe)] if action.nargs in (None, "+", 1) else []
    if command == "trace" and flag not in ("--step", "--row"):
        words[1:1] = ["--step", "1"]
    return words


def is_wrong(command: str, action: argparse.Action, text: str) -> bool:
    """Whether the option's own parser, its choices, or its type refuse a text."""
    if action.choices is not None:
        return text not in action.choices
    try:
        value = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError, UsageError):
        return True
    hint = HINTS.get(command, {}).get(action.dest)
    try:
        return hint is not None and check(action.dest, value, hint) is None
    except UsageError:
        return True


HINTS: dict[str, dict[str, Any]] = {
    "pack": options_of_pack(),
    "append": options_of_pack() | hints_of(append),
    "verify": hints_of(verify),
    "merge": hints_of(merge),
    "repack": hints_of(repack),
}
"""The types of options that a command hands on."""


@pytest.mark.parametrize(("command", "flag"), sorted(flags()))
def test_the_command_refuses(
    pipe: Path, command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that the option's parser, choices or type refuse: exit 2, two lines, before anything
    is opened. Every option refuses one, but for those that take any text."""
    action = next(a for a in make_parser(command)._actions if flag in a.option_strings)
    wrong = [text for text in TEXTS if is_wrong(command, action, text)]
    assert flag in FREE or len(wrong) > 1
    assert flag in MAY_BE_EMPTY or "" in wrong
    before = sorted(pipe.parent.iterdir())
    for value in wrong:
        words = words_of(command, flag, value, pipe)
        try:
            status = main(words)
        except SystemExit as err:
            status = int(err.code or 0)
        said = capsys.readouterr()
        assert status == 2, f"{words}: {status}, {said.err}"
        assert "usage:" not in said.err
        assert len(said.err.splitlines()) <= 3
        assert not said.out
    assert sorted(pipe.parent.iterdir()) == before


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_command_refuses_no_path(
    pipe: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty word is no input and no dataset: Path("") would be the folder that one is in."""
    words = words_of(command, "--none", "", pipe)
    for i, word in enumerate(words):
        if word == str(pipe):
            try:
                status = main([*words[:1], *words[3:i], "", *words[i + 1 :]])
            except SystemExit as err:
                status = int(err.code or 0)
            assert status == 2, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pack", "a.json", "--out", "b", "--tokenizr", "x"], "did you mean --tokenizer?"),
        (["pack", "a.json", "--tokenizer", "x", "--packing", "bestfit"], "did you mean best-fit?"),
        (["pack", "a.json", "--tokenizer", "x", "--format", "alpacca"], "did you mean alpaca?"),
        (["pack", "a.json", "--tokenizer", "x", "--shard-size", "64Q"], "not a size like 64M"),
        (["verfy", "a"], "did you mean verify?"),
        (["verify", "a", "--worker=2", "--sorce", "b"], "did you mean --source?"),
        (["pack", "a.json", "--output_dir", "b"], "did you mean --out?"),
        (["pack", "a.json", "--model_name_or_path", "b"], "did you mean --tokenizer?"),
        (["pack", "a.json", "--cutoff_len=2048"], "did you mean --max-length?"),
        (["pack", "a.json", "--num_proc", "4"], "did you mean --workers?"),
        (["pack", "a.json", "-j", "4"], "did you mean --workers?"),
        (["pack", "a.json", "--force"], "did you mean --overwrite?"),
        (["pack", "--dataset", "a.json"], "named without an option"),
        (["pack", "a.json", "--format", "openai"], "did you mean messages?"),
        (["pack", "a.json", "--task", "dpo"], "did you mean preference?"),
        (["pack", "a.json", "--split", "validation"], "did you mean test?"),
        (["plan", "a", "--gpus", "8"], "did you mean --world-size?"),
        (["check", "a"], "did you mean verify?"),
        (["tokenize", "a.json"], "did you mean pack?"),
        (["show", "a"], "did you mean inspect?"),
    ],
)
def test_what_was_meant(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest right word stands in the error, and no usage of twenty lines."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("words", [["help"], ["help", "verify"], ["version"], ["-V"]])
def test_help_and_version_by_other_names(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As many tools have them."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert ("shardkit 0" in said) == ("elp" not in words[0])
    assert ("usage: shardkit verify" in said) == (len(words) == 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["export", "data", "--to", "hf", "out", "--license", "mit"], "are of a card"),
        (["export", "data", "--to", "jsonl", "out", "--language", "en"], "are of a card"),
        (["merge", "one", "two", "--out", "out", "--max-rejects", "3"], "is for parts"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option of another kind of the same command."""
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_the_words_of_others_name_what_is_there() -> None:
    """Every advice is an option or value of some command."""
    parsers = [make_parser(command) for command in COMMANDS]
    flags = {flag for parser in parsers for flag in parser._option_string_actions}
    values = {v for parser in parsers for a in parser._actions for v in a.choices or ()}
    assert set(_OPTIONS) <= flags
    assert set(_COMMANDS) == set(COMMANDS)
    assert set(_VALUES) - {"zstd"} <= values


def test_the_actions_are_those_of_argparse() -> None:
    """The tests above look into parsers: this says so when their insides change."""
    assert all(isinstance(a, argparse.Action) for a in make_parser("pack")._actions)
