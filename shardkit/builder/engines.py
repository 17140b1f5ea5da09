"""Who builds the parts: this process, a pool of processes, or Ray."""

from __future__ import annotations

import errno
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from shardkit.builder.part import PartBuilder, Receipt
from shardkit.builder.plan import Plan
from shardkit.errors import BuildFailed

OnRows: TypeAlias = Callable[[int, int], None]
"""Called with (rows, tokens) done since the last call."""
_AGAIN = "Run the same command again: it continues with what is done."

_builder: PartBuilder | None = None
"""The builder of a worker process, made once by `_start`."""


def run_here(
    plan: Plan, folder: Path, parts: Sequence[int], on_rows: OnRows | None
) -> Iterator[Receipt]:
    """Build the parts one after another in this process."""
    builder = PartBuilder(plan, folder, on_rows)
    for part in parts:
        with explained(part, plan):
            receipt = builder.build(part)
        yield receipt


def run_pool(
    plan: Plan, folder: Path, parts: Sequence[int], workers: int, on_rows: OnRows | None
) -> Iterator[Receipt]:
    """Build the parts in a pool of spawned processes; receipts come as they are done."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(plan, folder)
    )
    waiting = list(reversed(parts))
    running: dict[Future[Receipt], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                part = waiting.pop()
                running[executor.submit(_build, part)] = part
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                part = running.pop(future)
                with explained(part, plan):
                    receipt = future.result()
                if on_rows:
                    on_rows(receipt.n_rows, sum(entry.n_tokens for entry in receipt.shards))
                yield receipt
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


@contextmanager
def explained(part: int, plan: Plan) -> Iterator[None]:
    """Say what happened and what to do when a part fails for a reason outside the data."""
    first, last = plan.part_bounds(part)
    where = f"part {part}, rows {first} to {last - 1}"
    try:
        yield
    except BrokenProcessPool as err:
        raise BuildFailed(
            "a worker process was killed (out of memory?)",
            where=where,
            fix=f"{_AGAIN} Use fewer --workers if memory is short.",
        ) from err
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise BuildFailed(
            f"the disk is full: {err.strerror}",
            where=where,
            fix=f"Free some space. {_AGAIN}",
        ) from err


def _start(plan: Plan, folder: Path) -> None:
    global _builder
    _builder = PartBuilder(plan, folder)


def _build(part: int) -> Receipt:
    if _builder is None:
        raise RuntimeError("the worker was not started")
    return _builder.build(part)
