"""Who builds the parts: this process, a pool of processes, or Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shardkit.builder.fork_server import ForkServer
from shardkit.builder.job import BuildEngine, Job, explained
from shardkit.builder.options import RUNNING
from shardkit.builder.part import PartBuilder
from shardkit.builder.plan import Plan
from shardkit.builder.ray_engine import RAY
from shardkit.builder.receipt import Receipt
from shardkit.options import Flag, OneOf, Positive
from shardkit.processes import WorkerPool, can_fork, end_with_parent
from shardkit.units import count_or_auto

_builder: PartBuilder | None = None
"""The builder of a worker process, made once by `_start`."""


def run_local(job: Job) -> Iterator[Receipt]:
    """Build in this process or in several; receipts come as parts are done.

    Several are forked from one that is loaded, where that is safe; else each is spawned.
    """
    workers = min(job.workers, len(job.parts))
    if workers == 1:
        return _run_here(job)
    if not can_fork():
        return _run_pool(job, workers)
    return _run_forked(job, workers)


def _run_here(job: Job) -> Iterator[Receipt]:
    builder = PartBuilder(job.plan, job.folder, job.on_rows)
    for part in job.parts:
        with explained(part, job.plan):
            receipt = builder.build(part)
        yield receipt


def _run_forked(job: Job, workers: int) -> Iterator[Receipt]:
    if job.prepared is not None:
        yield from job.prepared.run(job, workers)
        return
    with closing(ForkServer()) as server:
        yield from server.run(job, workers)


def _run_pool(job: Job, workers: int) -> Iterator[Receipt]:
    executor = WorkerPool(workers, _start, job.plan, job.folder)
    waiting = list(reversed(job.parts))
    running: dict[Future[Receipt], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                part = waiting.pop()
                with explained(part, job.plan):
                    running[executor.submit(_build, part)] = part
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                part = running.pop(future)
                with explained(part, job.plan):
                    receipt = future.result()
                job.on_rows(receipt.n_rows, receipt.n_tokens)
                yield receipt
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _start(plan: Plan, folder: Path) -> None:
    """Make a worker's builder; the worker ends when its parent does, however that is killed."""
    global _builder
    threading.Thread(target=end_with_parent, daemon=True).start()
    _builder = PartBuilder(plan, folder)


def _build(part: int) -> Receipt:
    if _builder is None:
        raise RuntimeError("the worker was not started")
    return _builder.build(part)


ENGINES: dict[str, BuildEngine] = {
    "local": BuildEngine(run_local, ForkServer if can_fork() else None),
    "ray": RAY,
}
"""Every build engine by name."""
_NAMES = OneOf(lambda: ENGINES)


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who builds; decides no bytes."""

    workers: Annotated[
        Positive | Literal["auto"],
        Flag(
            "processes, or auto (default): one for each core where there is enough to do",
            "N",
            RUNNING,
            parse=count_or_auto,
        ),
    ] = "auto"
    build_engine: Annotated[
        str,
        _NAMES,
        Flag("processes here, or Ray tasks", group=RUNNING, name="--engine"),
    ] = "local"


def engine_options() -> tuple[type[msgspec.Struct], ...]:
    """The classes of all options that say who builds."""
    return (BuildOptions, *dict.fromkeys(engine.options for engine in ENGINES.values()))
