"""The command `shardkit`: finds the sub-command, runs it, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import ModuleType

import msgspec

from shardkit.errors import ShardkitError, UsageError
from shardkit.version import __version__

from . import remote, render
from .habits import command_meant
from .options import Parser

COMMANDS: dict[str, str] = {
    "pack": "turn raw JSON and images into tokenised shards",
    "verify": "prove that a dataset is whole and is what its manifest says",
    "inspect": "show what is in a dataset, and what the model will see",
    "report": "write one HTML page that shows what is in a dataset",
    "view": "look through a whole dataset in a browser",
    "card": "write a dataset card for the hub, from the manifest",
    "plan": "say what a run will be like: steps, padding, balance, memory",
    "trace": "say which source rows made a batch, or when a row is seen",
    "repair": "rebuild damaged or missing shards from the source",
    "append": "pack more files into a dataset, as new shards",
    "repack": "make other packs, lengths or shards of a finished dataset",
    "merge": "make one dataset of a Slurm array's parts, or of several datasets",
    "export": "write a dataset in the format of another library",
    "completion": "print a shell's completions: bash, zsh, fish",
}
"""Every command with its summary; command X is in X_cmd.py."""

GOOD, PROBLEM, USAGE, INTERRUPTED = 0, 1, 2, 130

_EPILOG = """\
exit status:
  0    good
  1    a problem was found, or something was refused
  2    the command line is wrong
  130  interrupted (Ctrl-C); a pack continues when it is run again

`shardkit COMMAND --help` shows a command with examples.
Set SHARDKIT_DEBUG=1 to see a traceback where there is an error."""


class _TopParser(Parser):
    """The parser of the command's name."""

    def meant(self, value: str, choices: Sequence[str]) -> str | None:
        """The command that a wrong word stands for."""
        return command_meant(value, choices)


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of one command, or the top one when `command` is None."""
    if command is not None:
        module = _module(command)
        parser = Parser(
            prog=f"shardkit {command}",
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=_Formatter,
        )
        module.build_parser(parser)
        return parser
    parser = _TopParser(
        prog="shardkit",
        description="Pack LLM and VLM fine-tuning data, prove it, and stream it to every rank.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"shardkit {__version__}")
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    parser.usage = "shardkit [--version] COMMAND ..."
    parser.description = f"{parser.description}\n\ncommands:\n{listed}"
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see above")
    return parser


def make_whole_parser() -> argparse.ArgumentParser:
    """All commands as one parser with sub-parsers, for tools that read parsers."""
    whole = argparse.ArgumentParser(prog="shardkit")
    commands = whole.add_subparsers()
    for name, summary in COMMANDS.items():
        module = _module(name)
        parser = commands.add_parser(name, help=summary, description=module.DESCRIPTION)
        module.build_parser(parser)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    _hear_the_log()
    try:
        return _run(arguments, is_whole_process=argv is None)
    except ShardkitError as err:
        if os.environ.get("SHARDKIT_DEBUG"):
            raise
        render.note(f"shardkit: {err.describe()}")
        return USAGE if isinstance(err, UsageError) else PROBLEM
    except (OSError, *UNFORESEEN) as err:
        if isinstance(err, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PROBLEM
        if os.environ.get("SHARDKIT_DEBUG"):
            raise
        render.note(f"shardkit: {_in_words(err)}")
        return PROBLEM
    except KeyboardInterrupt:
        print("shardkit: interrupted", file=sys.stderr)
        return INTERRUPTED


UNFORESEEN = (
    *(ValueError, ArithmeticError, RecursionError, MemoryError, EOFError, LookupError),
    *(TypeError, AttributeError, RuntimeError, msgspec.MsgspecError),
)
"""What a file that nobody foresaw may raise: said in words, too."""


def _in_words(err: BaseException) -> str:
    """An error that is not ours, with what to do."""
    if isinstance(err, OSError):
        names = [str(name) for name in (err.filename, err.filename2) if name is not None]
        where = f"{' -> '.join(names)}: " if names else ""
        return f"{where}{err.strerror or err}\n  Check the path and its rights."
    kind = type(err).__name__
    return (
        f"{kind}: {err or 'no more is known'}\n  This was not foreseen: please report it, with "
        "what SHARDKIT_DEBUG=1 prints."
    )


class _Notes(logging.Handler):
    """What the library warns of, as notes for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        render.note(record.getMessage())


def _hear_the_log() -> None:
    log = logging.getLogger("shardkit")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes(logging.WARNING))


def _run(arguments: list[str], *, is_whole_process: bool) -> int:
    if not arguments:
        make_parser(None).print_help()
        return USAGE
    arguments = _as_options(arguments)
    if arguments[0] not in COMMANDS:
        make_parser(None).parse_args(arguments[:1])
    command = arguments[0]
    parser = make_parser(command)
    is_mixed = getattr(_module(command), "IS_MIXED", False)
    parse = parser.parse_intermixed_args if is_mixed else parser.parse_args
    parsed = parse(arguments[1:])
    if is_whole_process and getattr(_module(command), "MAY_FORK", False):
        from shardkit.processes import this_is_a_command

        this_is_a_command()
    render.notes_as_json(getattr(parsed, "log_json", False))
    parsed.command_line = shlex.join(["shardkit", *arguments])
    with ExitStack() as stack:
        if hasattr(parsed, "cache_dir"):
            stack.enter_context(remote.fetching_shown(parsed))
        status: int = _module(command).run(parsed)
    sys.stdout.flush()
    return status


def _as_options(arguments: list[str]) -> list[str]:
    """The words with `help`, `help COMMAND`, `version` and `-V` as the options that they mean."""
    first, *rest = arguments
    if first == "help":
        return [*rest[:1], "--help"]
    return ["--version"] if first in ("version", "-V") else arguments


def _module(command: str) -> ModuleType:
    return importlib.import_module(f".{command}_cmd", __package__)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of descriptions and examples; help columns line up at 28."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=80)


if __name__ == "__main__":
    sys.exit(main())
