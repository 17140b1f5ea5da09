"""A fork server: workers are forked from a process that holds tokenizer and engine already.

A spawned worker loads them itself: 1.5 to 2.8 CPU seconds and 320 MB each. One that is forked
from a loaded process begins at once and has 25 to 55 MB of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from shardkit.builder.job import Job, explained, killed
from shardkit.builder.part import PartBuilder
from shardkit.builder.plan import Plan
from shardkit.builder.receipt import Receipt
from shardkit.processes import ForkPool

T = TypeVar("T")
R = TypeVar("R")

_builder: PartBuilder | None = None
"""The builder, loaded in the fork server; its workers have it from birth."""


class ForkServer:
    """A process that imports as soon as it is made, and loads and forks when it gets a job."""

    def __init__(self) -> None:
        self._pool = ForkPool(_load, "shardkit fork server")
        self._has_workers = False

    def run(self, job: Job, workers: int) -> Iterator[Receipt]:
        """Build a job, the only one, with forked workers; receipts come as parts are done."""
        pool = self._pool
        try:
            pool.begin(job.plan, job.folder, workers=workers)
            self._has_workers = True
            pool.send(_build, job.parts)
            for number, found in pool.results():
                with explained(job.parts[number], job.plan):
                    if isinstance(found, BaseException):
                        raise found
                job.on_rows(found.n_rows, found.n_tokens)
                yield found
        except BrokenProcessPool as err:
            pool.end()
            raise killed("the fork server of the workers") from err
        except BaseException:
            pool.end()
            raise

    def map(self, call: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
        """Have the workers of the job do something else afterwards; without one it is done here."""
        if not self._has_workers:
            return [call(task) for task in tasks]
        try:
            return self._pool.run(call, tasks)
        except BrokenProcessPool as err:
            raise killed("the end of the build") from err

    def close(self) -> None:
        """End the process, whether it had a job or not."""
        if self._has_workers:
            self._pool.close()
        else:  # it may still import: nobody waits for that
            self._pool.end()


def _load(plan: Plan, folder: Path) -> None:
    global _builder
    _builder = PartBuilder(plan, folder)


def _build(part: int) -> Receipt:
    if _builder is None:
        raise RuntimeError("the fork server holds no builder")
    return _builder.build(part)
