"""Shards of a remote dataset, fetched by threads before the reader comes to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from shardkit.storage.locked_copy import Copy

AHEAD_BYTES = 256 << 20
"""Bytes that are fetched ahead when nothing is said, as 2 to 8 shards."""
N_THREADS = 4

Needed = Iterator[tuple[int, int]]
"""(batch that first needs it, shard), in the order of the batches."""


def default_depth(largest_bytes: int) -> int:
    """Shards that are fetched ahead, when the largest has so many bytes."""
    return max(2, min(8, AHEAD_BYTES // max(1, largest_bytes)))


@dataclass(slots=True)
class _Wanted:
    batch: int
    result: Future[Copy | None] = field(default_factory=Future)


class Ahead:
    """Fetches up to `depth` shards that were not taken yet.

    `fetch` gives the copy of a shard, or None when there is no room for it yet. The threads end
    with the shards, at `close`, and with the process.
    """

    def __init__(self, fetch: Callable[[int], Copy | None], needed: Needed, depth: int) -> None:
        self._fetch = fetch
        self._needed = needed
        self._depth = depth
        self._wanted: dict[int, _Wanted] = {}
        self._now = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._next = threading.Lock()
        for _ in range(min(depth, N_THREADS)):
            threading.Thread(target=self._work, name="shardkit-fetch", daemon=True).start()

    def advance(self, batch: int) -> None:
        """The reader has come to this batch: what an earlier one needed is not needed ahead."""
        with self._changed:
            self._now = batch
            for number in [n for n, wanted in self._wanted.items() if wanted.batch < batch]:
                del self._wanted[number]
            self._changed.notify_all()

    def take(self, number: int) -> Copy | None:
        """The copy of a shard; waits for it while a thread fetches it.

        None when no thread fetches it, or there was no room for it. Raises what fetching it raised.
        """
        with self._changed:
            wanted = self._wanted.pop(number, None)
            self._changed.notify_all()
        return None if wanted is None else wanted.result.result()

    def close(self) -> None:
        """Fetch nothing more; what is being fetched now is finished for the cache."""
        with self._changed:
            self._is_closed = True
            self._wanted.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        for number, wanted in iter(self._claim, None):
            try:
                wanted.result.set_result(self._fetch(number))
            except BaseException as err:  # raised where the shard is taken
                wanted.result.set_exception(err)

    def _claim(self) -> tuple[int, _Wanted] | None:
        """The next shard that nobody fetches yet, when there is a place for it; None at the end."""
        with self._next:  # the order is computed by one thread at a time
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self._has_place())
                    if self._is_closed:
                        return None
                try:
                    batch, number = next(self._needed, (-1, -1))
                except Exception:  # an index could not be read: the reader meets that by itself
                    return None
                if number < 0:
                    return None
                with self._changed:
                    if batch >= self._now and number not in self._wanted:
                        wanted = self._wanted[number] = _Wanted(batch)
                        return number, wanted

    def _has_place(self) -> bool:
        return len(self._wanted) < self._depth
