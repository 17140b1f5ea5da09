"""Batches of samples of like length: what LengthGroupedSampler does, by arithmetic and the index.

The sequence of an epoch is cut into groups of consecutive positions, and the samples of a group
are sorted by length inside each lane. A rank still reads its own lanes only, and any position can
be found from its group alone (docs/format.md, section 8.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shardkit.loader.reader import Reader
from shardkit.loader.source import Source
from shardkit.loader.steps import Order
from shardkit.order.permute import U64

BATCHES_PER_GROUP = 50
"""Global batches in a group, as XTuner and transformers have it."""


def group_size(n_samples: int | None, global_batch: int) -> int:
    """Positions of a group: 50 global batches, fewer when the epoch has fewer than 200."""
    if n_samples is None:
        return BATCHES_PER_GROUP * global_batch
    return global_batch * max(1, min(BATCHES_PER_GROUP, n_samples // (4 * global_batch)))


@dataclass
class GroupedOrder:
    """An order whose groups are sorted: samples with images first, longest first.

    Position p of a group belongs to the class `(p // chunk) % lanes`; the samples at the
    positions of one class are put there again in order of length.
    """

    order: Order
    sources: Sequence[Source]
    group: int
    lanes: int
    chunk: int
    tokens_per_image: int = 1
    """What an image counts when its placeholder is expanded."""
    _sorted: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(
        default_factory=dict, repr=False
    )
    _reader: Reader | None = field(default=None, repr=False)

    @property
    def n_samples(self) -> int | None:
        """As many as before."""
        return self.order.n_samples

    def locate(self, positions: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
        return {**self.__dict__, "_sorted": {}, "_reader": None}

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

    def _group(self, group: int, kind: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        key = group * self.lanes + kind
        if key not in self._sorted:
            if len(self._sorted) >= 2 * self.lanes:
                self._sorted.clear()
            shards, rows = self.order.locate(self._positions(group, kind))
            order = self._by_length(shards, rows)
            self._sorted[key] = shards[order], rows[order]
        return self._sorted[key]

    def _by_length(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._reader is None:
            self._reader = Reader(self.sources)
        index = self._reader.index(shards, rows)
        n_images = index["n_images"].astype(np.int64)
        lengths = index["n_tokens"] + n_images * (self.tokens_per_image - 1)
        return np.lexsort((np.arange(len(shards)), -lengths, n_images == 0))
