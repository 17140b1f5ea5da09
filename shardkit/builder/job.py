"""What a build engine is, what it is asked to do, and what to say when it fails."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from shardkit.builder.plan import Plan
from shardkit.builder.receipt import Receipt
from shardkit.errors import BuildFailed

T = TypeVar("T")
R = TypeVar("R")
OnRows: TypeAlias = Callable[[int, int], None]
"""Called with (rows, tokens) done since the last call."""
AGAIN = "Run the same command again: it continues with what is done."


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options that an engine alone has; most have none."""


@dataclass(frozen=True, slots=True)
class Job:
    """Parts to build, and with what."""

    plan: Plan
    folder: Path
    """OUT/.building, or a folder in it."""
    parts: Sequence[int]
    workers: int
    on_rows: OnRows
    options: EngineOptions
    """The own options of the engine that gets the job."""
    prepared: Any = None
    """What the engine's `prepare` made, while the inputs were scanned; None when it did not."""


class Prepared(Protocol):
    """What an engine has begun in good time."""

    def map(self, call: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
        """Results in order, by the workers of the job that it got."""

    def close(self) -> None:
        """Free it, whether it got a job or not."""


@dataclass(frozen=True, slots=True)
class BuildEngine:
    """One way to build parts: an entry of `ENGINES`."""

    run: Callable[[Job], Iterator[Receipt]]
    """Build a job: receipts, in any order. The bytes of a part may not depend on who builds it."""
    prepare: Callable[[], Prepared] | None = None
    """Called when several workers are to be expected, before there is a job."""
    options: type[EngineOptions] = EngineOptions
    """The options of this engine alone: keyword arguments of `pack`, and flags of the command."""


@contextmanager
def explained(part: int, plan: Plan) -> Iterator[None]:
    """Errors of a part, with the part named and what to do."""
    first, last = plan.part_bounds(part)
    where = f"part {part}, rows {first} to {last - 1}"
    try:
        with disk_errors(where):
            yield
    except BrokenProcessPool as err:
        raise killed(where) from err


def killed(where: str) -> BuildFailed:
    """What to raise when a worker ended without a word."""
    return BuildFailed(
        "a worker process was killed (out of memory?)",
        where=where,
        fix=f"{AGAIN} Use fewer --workers if memory is short.",
    )


@contextmanager
def disk_errors(where: str | Path) -> Iterator[None]:
    """BuildFailed instead of the system's error: no space, no rights, a name that is too long.

    `where`: what is named when the system names no file.
    """
    try:
        yield
    except (BrokenPipeError, BlockingIOError, ChildProcessError):
        raise
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BuildFailed(
                f"the disk is full: {err.strerror}",
                where=str(where),
                fix=f"Free some space. {AGAIN}",
            ) from err
        file = err.filename if isinstance(err.filename, str) else None
        raise BuildFailed(
            f"the system says: {err.strerror or err}",
            where=file or str(where),
            fix="Check the path, its rights and the disk; then run the same command again.",
        ) from err
