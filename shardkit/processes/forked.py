"""Workers that are forked from a process which loads once and does nothing else.

A spawned worker imports and loads for itself, for seconds. Here one process does so, with nothing
else running in it; a worker forked from it begins at once and shares its memory. The caller's
process is not forked, because it may have threads that hold locks, unless it is our own command's
before it has any: what that has imported, half a second of it, the mother then has from birth.

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
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from shardkit.processes.spawned import end_with_parent, sigint_held, sigint_let_go

T = TypeVar("T")
R = TypeVar("R")
Load = Callable[..., None]

_WATCH = "shardkit end with parent"
_pools: weakref.WeakSet[ForkPool] = weakref.WeakSet()
"""The pools of this process: a mother that is forked from it has their pipes, and closes them."""
_is_command = False


def this_is_a_command() -> None:
    """Say that this process runs the command `shardkit` and nothing else, so it may be forked."""
    global _is_command
    _is_command = True


def fork_no_more() -> None:
    """Say that this process now holds what a forked one must not, as the lock of a folder."""
    global _is_command
    _is_command = False


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
        self.name = name
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = _context().Process(target=_mother, args=(theirs, load), name=name)
        self._n_waiting = 0
        _pools.add(self)
        with sigint_held(), _forks_unwarned():
            self._process.start()
        theirs.close()

    def begin(self, *given: Any, workers: int) -> None:
        """Have the process load; workers are forked with the first batch.

        Raises BrokenProcessPool when the process is gone.
        """
        self._send((given, workers))

    def send(self, call: Callable[[T], R], tasks: Sequence[T]) -> None:
        """Have tasks done; their results are to be fetched before the next batch is sent.

        Raises RuntimeError when they were not, BrokenProcessPool when the process is gone.
        """
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
        """Close the pool; end it where an exception leaves, which is not to wait for its tasks."""
        if kind is None:
            self.close()
        else:
            self.end()

    def end(self) -> None:
        """End the process now, whatever it is doing."""
        self._process.terminate()
        self.close()

    def close(self) -> None:
        """End the process, whether it had anything to do or not; what it is doing is done first."""
        if not self._pipe.closed:
            self._pipe.close()
            self._process.join()

    def let_go(self) -> None:
        """Close this process's copy of the pipe's end: that of the process it was forked from."""
        self._pipe.close()

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
    for pool in list(_pools):  # forked: the caller's pools are not ours
        pool.let_go()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
    with _forks_unwarned():
        future = executor.submit(call, task)
    if not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=end_with_parent, name=_WATCH, daemon=True).start()
    return future


def _context() -> Any:
    """The mother is forked from a command that has one thread and no torch, else spawned."""
    is_alone = threading.active_count() == 1 and "torch" not in sys.modules
    may_fork = can_fork() and _is_command and is_alone
    return multiprocessing.get_context("fork" if may_fork else "spawn")


@contextmanager
def _forks_unwarned() -> Iterator[None]:
    """Forking without Python 3.12's warning of threads: it counts those of NumPy's and of an
    engine's libraries, which survive a fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _born() -> None:
    """A worker ends when the process that forked it does, however that ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, name=_WATCH, daemon=True).start()
