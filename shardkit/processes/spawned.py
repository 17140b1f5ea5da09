"""Worker processes that are spawned, and that Ctrl-C ends without a word of their own."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, reduction, resource_tracker
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool(ProcessPoolExecutor):
    """A pool of spawned processes; each calls `begin(*given)` first.

    A terminal sends Ctrl-C to the whole group. What there is to say then the parent says; a
    worker that is interrupted while it still imports would print a traceback, so workers are born
    with SIGINT held back, and die of it silently once they have started.
    """

    def __init__(self, workers: int, begin: Callable[..., None], *given: Any) -> None:
        self._handed = _Handed(given)
        given_again: Any = self._handed  # what a worker makes of it is the tuple
        super().__init__(
            workers, get_context("spawn"), initializer=_begin, initargs=(begin, given_again)
        )

    def submit(  # processes are spawned here
        self, call: Callable[P, T], /, *args: P.args, **options: P.kwargs
    ) -> Future[T]:
        with sigint_held():
            try:
                return super().submit(call, *args, **options)
            except (OSError, ValueError) as err:
                if self._broken:  # its pipes were closed while they were handed to a new worker
                    raise BrokenProcessPool("a worker died while another one was started") from err
                raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Free what the pool holds. Of one that broke, end the workers too.

        Python ends those that it knows of when one dies. One that was being started meanwhile
        it would wait for without end, also at exit.
        """
        if self._broken:
            for process in list((self._processes or {}).values()):
                process.terminate()
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._handed.file.close()


def end_with_parent() -> None:
    """Wait until the process that started this one is gone, however it ended; then end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def sigint_held() -> Iterator[None]:
    """Processes that this thread starts meanwhile have SIGINT blocked."""
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Handed:
    """Values for workers, in a file without a name; what unpickles is the tuple itself.

    Through its pipe a worker would get them one after the other, and the parent wait for each to
    have read them all: for ever, where one dies on the way.
    """

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the pool
        pickle.dump(values, self.file, pickle.HIGHEST_PROTOCOL)
        self.file.flush()

    def __reduce__(self) -> tuple[Any, ...]:
        return _taken, (reduction.DupFd(self.file.fileno()),)


def _taken(handed: Any) -> Any:
    descriptor = handed.detach()
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            return pickle.loads(data)
    finally:
        os.close(descriptor)


def sigint_let_go() -> None:
    """Let a process that was born with SIGINT held back die of it from now on, silently."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _begin(begin: Callable[..., None], given: tuple[Any, ...]) -> None:
    sigint_let_go()
    begin(*given)


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
