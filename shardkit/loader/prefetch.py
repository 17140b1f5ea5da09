"""Batches made ahead by a thread: bounded, in order, and gone when nobody wants them any more."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

_BURST_S = 0.001
"""Items are handed over together when they come faster than this: a wake-up costs as much as
making a small batch."""
_JOIN_S = 10.0


class Prefetched(Generic[T]):
    """The items of an iterator, made by a thread of its own up to `depth` ahead.

    An error in the iterator is raised here, as the same object, after the items before it. The
    thread ends at the end of the iterator, at `close`, when this object is collected and when the
    interpreter exits.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._channel: _Channel[T] = _Channel(max(1, depth))
        self._ready: Iterator[T] = iter(())
        self._ended = False
        thread = threading.Thread(
            target=_produce, args=(items, self._channel), name="shardkit-prefetch", daemon=True
        )
        self.close = weakref.finalize(self, _stop, self._channel, thread)
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        for item in self._ready:
            self._channel.slots.put(None)
            return item
        if self._ended or not self.close.alive:
            raise StopIteration
        found = self._channel.ready.get()
        if isinstance(found, _End):
            self._ended = True
            self.close()
            if found.error is not None:
                raise found.error
            raise StopIteration
        self._ready = iter(found)
        return next(self)


class _End:
    """The last thing in the queue: how the iterator ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Channel(Generic[T]):
    """What the two threads share. It does not know the consumer, which may be collected."""

    def __init__(self, depth: int) -> None:
        self.ready: SimpleQueue[list[T] | _End] = SimpleQueue()
        self.slots: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self.slots.put(None)
        self.is_closed = False


def _produce(items: Iterator[T], channel: _Channel[T]) -> None:
    error = None
    try:
        _hand_over(items, channel)
    except BaseException as err:
        error = err
    channel.ready.put(_End(error))


def _hand_over(items: Iterator[T], channel: _Channel[T]) -> None:
    burst: list[T] = []
    flush_at = 0.0
    try:
        for item in items:
            if burst and channel.slots.empty():
                channel.ready.put(burst)
                burst = []
            channel.slots.get()
            if channel.is_closed:
                return
            burst.append(item)
            now = time.perf_counter()
            if now >= flush_at:
                channel.ready.put(burst)
                burst = []
                flush_at = now + _BURST_S
    finally:
        if burst:  # also what was made before an error
            channel.ready.put(burst)


def _stop(channel: _Channel[T], thread: threading.Thread) -> None:
    channel.is_closed = True
    channel.slots.put(None)
    if thread is not threading.current_thread():
        thread.join(_JOIN_S)
