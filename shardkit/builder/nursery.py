"""Workers that are born loaded: they are forked from a process that holds tokenizer and engine.

A spawned worker loads them itself: 1.5 to 2.8 CPU seconds and 320 MB each. Here one process, with
nothing else running in it, loads them once; a worker forked from it begins at once and has 25 to
55 MB of its own. The caller's process is never forked: it may have threads that hold locks.

    caller ──spawn──► nursery (loads) ──fork──► worker, worker, ...
           ◄─────────── receipts ──────────────┘
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path

from shardkit.builder.job import Job, explained, killed
from shardkit.builder.part import PartBuilder
from shardkit.builder.plan import Plan
from shardkit.builder.receipt import Receipt
from shardkit.processes import end_with_parent, sigint_held, sigint_let_go

_builder: PartBuilder | None = None
"""Loaded in the nursery; its workers have it from birth."""


def can_fork() -> bool:
    """Whether workers are forked: only on Linux. (On macOS system libraries do not survive it.)"""
    return sys.platform == "linux"


class Nursery:
    """A process that imports as soon as it is made, and loads and forks when it gets a job."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_nursery, args=(theirs,), name="shardkit nursery")
        with sigint_held():
            self._process.start()
        theirs.close()

    def run(self, job: Job, workers: int) -> Iterator[Receipt]:
        """Build a job, the only one, with forked workers; receipts come as parts are done."""
        try:
            yield from _receipts(job, self._pipe, workers)
        except BaseException:
            self._process.terminate()
            raise
        finally:
            self.close()

    def close(self) -> None:
        """End it, whether it had a job or not."""
        if not self._pipe.closed:
            self._pipe.close()
            self._process.join()


def _receipts(job: Job, nursery: Connection, workers: int) -> Iterator[Receipt]:
    n_left = len(job.parts)
    try:
        nursery.send((job.plan, job.folder, list(job.parts), workers))
        while n_left:
            found = nursery.recv()
            if isinstance(found, BaseException):
                raise found
            job.on_rows(found.n_rows, found.n_tokens)
            n_left -= 1
            yield found
    except (EOFError, ConnectionError) as err:
        raise killed("the nursery of the workers") from err


def _nursery(caller: Connection) -> None:
    """The nursery's whole life: load, fork, hand parts out and receipts back."""
    global _builder
    sigint_let_go()
    try:
        plan, folder, parts, workers = caller.recv()
    except EOFError:  # the caller is gone
        return
    try:
        _builder = PartBuilder(plan, folder)
        for receipt in _built(plan, folder, parts, workers):
            caller.send(receipt)
    except ConnectionError:
        os._exit(1)
    except BaseException as err:
        caller.send(err)


def _built(plan: Plan, folder: Path, parts: Sequence[int], workers: int) -> Iterator[Receipt]:
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_born)
    waiting = list(reversed(parts))
    running: dict[Future[Receipt], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                part = waiting.pop()
                with explained(part, plan):
                    running[_submitted(executor, part)] = part
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                part = running.pop(future)
                with explained(part, plan):
                    receipt = future.result()
                yield receipt
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _submitted(executor: ProcessPoolExecutor, part: int) -> Future[Receipt]:
    """All workers are forked at the first call, while this process has no thread of Python's."""
    with warnings.catch_warnings():  # Python 3.12 counts the engine's threads, which survive it
        warnings.simplefilter("ignore", DeprecationWarning)
        future = executor.submit(_build, part)
    if not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=end_with_parent, name=_WATCH, daemon=True).start()
    return future


_WATCH = "shardkit end with parent"


def _born() -> None:
    """A worker ends when the nursery does, however that ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, name=_WATCH, daemon=True).start()


def _build(part: int) -> Receipt:
    if _builder is None:
        raise RuntimeError("the nursery holds no builder")
    return _builder.build(part)
