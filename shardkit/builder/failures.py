"""What to say when a build fails for a reason that is not in the data."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from shardkit.builder.plan import Plan
from shardkit.errors import BuildFailed

AGAIN = "Run the same command again: it continues with what is done."


@contextmanager
def explained(part: int, plan: Plan) -> Iterator[None]:
    """Errors of a part, with the part named and what to do."""
    first, last = plan.part_bounds(part)
    where = f"part {part}, rows {first} to {last - 1}"
    try:
        with full_disk(where):
            yield
    except BrokenProcessPool as err:
        raise BuildFailed(
            "a worker process was killed (out of memory?)",
            where=where,
            fix=f"{AGAIN} Use fewer --workers if memory is short.",
        ) from err


@contextmanager
def full_disk(where: str | Path) -> Iterator[None]:
    """BuildFailed instead of the system's error when there is no space left."""
    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise BuildFailed(
            f"the disk is full: {err.strerror}", where=str(where), fix=f"Free some space. {AGAIN}"
        ) from err
