"""The frames of compressed shards that are read now, uncompressed: each made once, few kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from shardkit.format.shard import Shard
from shardkit.loader.collate import Row, as_words

CACHE_BYTES = 64 << 20
"""Bytes of frames kept, or one frame; a window of 4,096 text samples is some 8 MB."""


class Frame(NamedTuple):
    """One frame, uncompressed."""

    words: Row
    """The frame as int32."""
    view: memoryview
    """The frame as bytes."""


class FrameCache:
    """Uncompressed frames, the latest used ones. Threads may share it."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._n_bytes = 0
        self._frames: OrderedDict[tuple[int, int], Frame] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: Shard, number: int, frame: int) -> Frame:
        """Frame `frame` of `shard`, which has this number among all shards; raises CorruptShard."""
        key = (number, frame)
        found = self._frames.get(key)
        if found is None:
            with self._lock:
                found = self._frames.get(key) or self._make(shard, key)
        try:  # noqa: SIM105 - for each sample twice, and `suppress` would take most of the time
            self._frames.move_to_end(key)
        except KeyError:  # another thread dropped it just now
            pass
        return found

    def _make(self, shard: Shard, key: tuple[int, int]) -> Frame:
        view = memoryview(shard.frame(key[1]))
        made = self._frames[key] = Frame(as_words(view), view)
        self._n_bytes += view.nbytes
        while self._n_bytes > self._limit_bytes and len(self._frames) > 1:
            _, dropped = self._frames.popitem(last=False)
            self._n_bytes -= dropped.view.nbytes
        return made

    def drop(self, number: int) -> None:
        """Forget all frames of a shard."""
        with self._lock:
            for key in [key for key in self._frames if key[0] == number]:
                self._n_bytes -= self._frames.pop(key).view.nbytes
