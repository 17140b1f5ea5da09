"""Batches of samples of like length: what LengthGroupedSampler does, by arithmetic and the index.

The sequence of an epoch is cut into groups of consecutive positions, and the samples of a group
are sorted by length inside each lane. A rank still reads its own lanes only, and any position can
be found from its group alone (docs/format.md, section 8.6).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardkit.order.permute import U64

ShardRows = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(n,) shards, numbered through all members, and (n,) rows in them."""
Lengths = Callable[
    [NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]
]
"""(shards, rows) → (n,) lengths and (n,) images of each sample, from the index."""

BATCHES_PER_GROUP = 50
"""Global batches in a group, as XTuner and transformers have it."""


class Order(Protocol):
    """A sequence of samples: what an epoch is."""

    @property
    def n_samples(self) -> int | None:
        """Samples of the sequence; None when it never ends."""

    def locate(self, positions: U64) -> ShardRows:
        """The (shard, row) of each position."""

    def seen_at(self, shard: int, row: int, first: int = 0) -> Iterator[int]:
        """The positions from `first` on at which a sample stands; without end in an endless one."""


def group_size(n_samples: int | None, global_batch: int) -> int:
    """Positions of a group: 50 global batches, fewer when the epoch has fewer than 200 of them."""
    if n_samples is None:
        return BATCHES_PER_GROUP * global_batch
    return global_batch * max(1, min(BATCHES_PER_GROUP, n_samples // (4 * global_batch)))


class WithinGroups(ABC):
    """An order that moves samples of another one, each inside its group of positions."""

    order: Order
    group: int

    @property
    def n_samples(self) -> int | None:
        """Samples of the order that is rearranged; None when it never ends."""
        return self.order.n_samples

    def seen_at(self, shard: int, row: int, first: int = 0) -> Iterator[int]:
        """The positions from `first` on at which a sample stands."""
        for position in self.order.seen_at(shard, row, first // self.group * self.group):
            moved = self._moved(position)
            if moved >= first:
                yield moved

    @abstractmethod
    def _moved(self, position: int) -> int:
        """Where the sample goes that `self.order` has at `position`."""


@dataclass
class GroupedOrder(WithinGroups):
    """An order whose groups are sorted: samples with images first, longest first.

    Position p of a group belongs to the class `(p // chunk) % lanes`; the samples at the
    positions of one class are put there again in order of length.
    """

    order: Order
    lengths: Lengths
    group: int
    lanes: int
    chunk: int
    _sorted: dict[int, ShardRows] = field(default_factory=dict, repr=False)

    def locate(self, positions: U64) -> ShardRows:
        """The (shard, row) of each position."""
        groups = (positions // np.uint64(self.group)).astype(np.int64)
        shards = np.empty(len(positions), np.int64)
        rows = np.empty(len(positions), np.int64)
        classes = self._class_of(positions)
        for group, kind in {*zip(groups.tolist(), classes.tolist(), strict=True)}:
            mine = (groups == group) & (classes == kind)
            found = self._group(group, kind)
            place = np.searchsorted(self._positions(group, kind), positions[mine])
            shards[mine], rows[mine] = found[0][place], found[1][place]
        return shards, rows

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sorted": {}}

    def _moved(self, position: int) -> int:
        at = np.array([position], np.uint64)
        group, kind = position // self.group, int(self._class_of(at)[0])
        own = self._positions(group, kind)
        order = self._by_length(*self.order.locate(own))
        return int(own[np.flatnonzero(own[order] == at)[0]])

    def _class_of(self, positions: U64) -> NDArray[np.int64]:
        return ((positions // np.uint64(self.chunk)) % np.uint64(self.lanes)).astype(np.int64)

    def _positions(self, group: int, kind: int) -> U64:
        """The positions of one class of a group, ascending."""
        last = (group + 1) * self.group
        if self.order.n_samples is not None:
            last = min(last, self.order.n_samples)
        positions = np.arange(group * self.group, last, dtype=np.uint64)
        own: U64 = positions[self._class_of(positions) == kind]
        return own

    def _group(self, group: int, kind: int) -> ShardRows:
        key = group * self.lanes + kind
        found = self._sorted.get(key)
        if found is None:  # another thread may clear them at any time
            if len(self._sorted) >= 2 * self.lanes:
                self._sorted.clear()
            shards, rows = self.order.locate(self._positions(group, kind))
            order = self._by_length(shards, rows)
            found = self._sorted[key] = shards[order], rows[order]
        return found

    def _by_length(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        # lexsort's last key counts first: images, then length, then the place in the sequence
        lengths, n_images = self.lengths(shards, rows)
        return np.lexsort((np.arange(len(shards)), -lengths, n_images == 0))
