"""Workers that are forked from a process which loads once and does nothing else.

A spawned worker imports and loads for itself, for seconds. Here one process does so, with nothing
else running in it; a worker forked from it begins at once and shares its memory. The caller's
process is never forked: it may have threads that hold locks.

    caller ──spawn──► mother (loads) ──fork──► worker, worker, ...
           ◄─────────── results ──────────────────┘
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from shardkit.processes.spawned import end_with_parent, sigint_held, sigint_let_go

T = TypeVar("T")
R = TypeVar("R")
Load = Callable[..., None]

_WATCH = "shardkit end with parent"


def can_fork() -> bool:
    """Whether workers are forked: only on Linux. (On macOS system libraries do not survive it.)"""
    return sys.platform == "linux"


class ForkPool:
    """A process that imports the module of `load` as soon as it is made, and forks workers later.

    `load(*given)` runs in it before it forks: what it leaves in its module's globals the workers
    have from birth. Batches of tasks are done one after the other by the same workers. All end
    when the caller does, however that is killed.
    """

    def __init__(self, load: Load, name: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_mother, args=(theirs, load), name=name)
        self._n_waiting = 0
        with sigint_held():
            self._process.start()
        theirs.close()

    def begin(self, *given: Any, workers: int) -> None:
        """Have it load; workers are forked with the first batch."""
        self._send((given, workers))

    def send(self, call: Callable[[T], R], tasks: Sequence[T]) -> None:
        """Have tasks done; their results are fetched before the next batch is sent."""
        if self._n_waiting:
            raise RuntimeError("the results of the batch before were not fetched")
        self._n_waiting = len(tasks)
        if tasks:
            self._send((call, list(tasks)))

    def results(self) -> Iterator[tuple[int, Any]]:
        """(number of the task, its result or the exception that it raised), as they are done.

        Raises BrokenProcessPool when the process that forks is gone, or cannot load.
        """
        while self._n_waiting:
            number, found = self._received()
            if number is None:
                raise found
            self._n_waiting -= 1
            yield number, found

    def each(self, call: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """The results of tasks as they are done; raises the first exception that comes."""
        self.send(call, tasks)
        for _, one in self.results():
            if isinstance(one, BaseException):
                raise one
            yield one

    def run(self, call: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
        """The results of tasks in their order; raises the first exception that comes."""
        self.send(call, tasks)
        found: dict[int, R] = {}
        for number, one in self.results():
            if isinstance(one, BaseException):
                raise one
            found[number] = one
        return [found[number] for number in range(len(tasks))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close it; end it where an exception leaves, which is not to wait for what is done."""
        if kind is None:
            self.close()
        else:
            self.end()

    def end(self) -> None:
        """End it now, with what it is doing."""
        self._process.terminate()
        self.close()

    def close(self) -> None:
        """End it, whether it had anything to do or not; what it is doing is done first."""
        if not self._pipe.closed:
            self._pipe.close()
            self._process.join()

    def _send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except (OSError, EOFError) as err:
            raise self._gone() from err

    def _received(self) -> tuple[int | None, Any]:
        try:
            found: tuple[int | None, Any] = self._pipe.recv()
        except (OSError, EOFError) as err:
            raise self._gone() from err
        return found

    def _gone(self) -> BrokenProcessPool:
        return BrokenProcessPool(f"{self.name} is gone")


def _mother(caller: Connection, load: Load) -> None:
    """The forking process's whole life: load, fork, hand tasks out and results back."""
    sigint_let_go()
    executor: ProcessPoolExecutor | None = None
    try:
        given, workers = caller.recv()
        load(*given)
        while True:
            call, tasks = caller.recv()
            executor = executor or ProcessPoolExecutor(
                workers, multiprocessing.get_context("fork"), initializer=_born
            )
            for number, found in _done(executor, call, tasks, workers):
                caller.send((number, found))
    except EOFError:  # the caller has no more to do, or is gone
        if executor is not None:
            executor.shutdown(cancel_futures=True)
    except ConnectionError:
        os._exit(1)
    except BaseException as err:
        caller.send((None, err))
        os._exit(1)


def _done(
    executor: ProcessPoolExecutor, call: Callable[[Any], Any], tasks: Sequence[Any], workers: int
) -> Iterator[tuple[int, Any]]:
    waiting = list(reversed(range(len(tasks))))
    running: dict[Future[Any], int] = {}
    while waiting or running:
        while waiting and len(running) < 2 * workers:
            number = waiting.pop()
            try:
                running[_submitted(executor, call, tasks[number])] = number
            except BrokenProcessPool as err:
                yield number, err
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future.exception() or future.result()


def _submitted(executor: ProcessPoolExecutor, call: Callable[[Any], Any], task: Any) -> Future[Any]:
    """All workers are forked at the first call, while this process has no thread of Python's."""
    with warnings.catch_warnings():  # Python 3.12 counts an engine's threads, which survive it
        warnings.simplefilter("ignore", DeprecationWarning)
        future = executor.submit(call, task)
    if not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=end_with_parent, name=_WATCH, daemon=True).start()
    return future


def _born() -> None:
    """A worker ends when the process that forked it does, however that ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, name=_WATCH, daemon=True).start()
