"""Counts of a dataset from its indexes, shard by shard: no token is read, memory is bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.format.shard import Shard

MAX_ROWS = 20_000_000
"""Samples whose index rows are read; of a larger dataset some shards are, evenly spread."""
MAX_SHARDS_OF_URL = 8
"""Shards of a dataset behind a URL that are fetched, unless more are asked for."""
N_SHARES = 20
"""Bars from 0 to 100 %."""
_SETTLE = 1 << 20
"""Values that a Tally gathers before it adds them up."""

Counts = NDArray[np.int64]


class Tally:
    """How often each value occurred. Memory is that of the distinct values."""

    def __init__(self) -> None:
        self._values: list[Counts] = []
        self._counts: list[Counts] = []
        self._n_waiting = 0

    def add(self, values: NDArray[np.int64]) -> None:
        """Count these values, from 0."""
        found, n = np.unique(values, return_counts=True)
        self._values.append(found)
        self._counts.append(n)
        self._n_waiting += len(found)
        if self._n_waiting > _SETTLE:
            self.result()

    def result(self) -> tuple[Counts, Counts]:
        """The distinct values in rising order, and how often each occurred, (n,) int64 each.

        Values [3, 5, 3] counted [1, 2, 4] times: [3, 5] and [5, 2].
        """
        values = np.concatenate([np.zeros(0, np.int64), *self._values])
        counts = np.concatenate([np.zeros(0, np.int64), *self._counts])
        found, where = np.unique(values, return_inverse=True)
        n = np.zeros(len(found), np.int64)
        np.add.at(n, where, counts)
        self._values, self._counts, self._n_waiting = [found], [n], 0
        return found, n


@dataclass
class Survey:
    """What the indexes of a dataset say; a row is a sample, or a pack when packed."""

    n_shards: int
    """Shards whose indexes were read."""
    is_whole: bool
    """Whether the indexes of all shards were read."""
    n_rows: int = 0
    n_truncated: int = 0
    n_unanswered: int = 0
    """Rows without any supervised token."""
    n_segments: int = 0
    n_split: int = 0
    """Segments that continue a sample begun in another pack."""
    lengths: Tally = field(default_factory=Tally)
    """Places in the model of each row: tokens, pictures expanded."""
    segment_lengths: Tally = field(default_factory=Tally)
    """Packed: tokens of each segment."""
    images: Tally = field(default_factory=Tally)
    """Pictures of each row."""
    supervised: Counts = field(default_factory=lambda: np.zeros(N_SHARES, np.int64))
    """Rows by the share of their tokens that has a label."""
    filled: Counts | None = None
    """Packed: rows by the share of max_length that is filled."""
    by_source: Counts = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    """(n_sources, 3) rows (packed: segments), tokens and pictures of each source file."""

    def add(self, shard: Shard, lengths: Counts, first_source: int, max_length: int | None) -> None:
        """Count the index rows of a shard; `lengths` are their places in the model."""
        index = shard.index
        n_tokens = index["n_tokens"].astype(np.int64)
        n_supervised = index["n_supervised"].astype(np.int64)
        self.n_rows += len(index)
        self.n_truncated += int(np.count_nonzero(index["n_cut"]))
        self.n_unanswered += int(np.count_nonzero(n_supervised == 0))
        self.lengths.add(lengths)
        self.images.add(index["n_images"].astype(np.int64))
        self.supervised += _shares(n_supervised, np.maximum(n_tokens, 1))
        parts, sizes = index, n_tokens
        if shard.segments is not None:
            parts, sizes = shard.segments, shard.segments["length"].astype(np.int64)
            self.n_segments += len(parts)
            self.segment_lengths.add(sizes)
            self.n_split += int(np.count_nonzero(parts["first"]))
            if max_length:
                shares = _shares(lengths, np.full(len(lengths), max_length))
                self.filled = shares if self.filled is None else self.filled + shares
        sources = parts["source"].astype(np.int64) + first_source
        np.add.at(self.by_source[:, 0], sources, 1)
        np.add.at(self.by_source[:, 1], sources, sizes)
        np.add.at(self.by_source[:, 2], sources, parts["n_images"].astype(np.int64))


def shards_to_read(dataset: Dataset, wanted: int | None) -> list[int]:
    """The numbers of the shards whose indexes a report reads.

    `wanted`: so many, evenly spread. None: all, or as many as hold MAX_ROWS samples; of a URL
    MAX_SHARDS_OF_URL, since each is fetched whole.
    """
    n = len(dataset.manifest.shards)
    if wanted is None:
        mean = max(1, dataset.manifest.n_samples // max(1, n))
        wanted = max(1, MAX_ROWS // mean) if dataset.is_local else MAX_SHARDS_OF_URL
    if wanted >= n:
        return list(range(n))
    return [int(number) for number in np.unique(np.linspace(0, n - 1, wanted).astype(np.int64))]


def places_of(shard: Shard, image_tokens: int) -> Counts:
    """(n,) places in the model of each row of a shard: tokens, with pictures expanded."""
    index = shard.index
    if "length" in (index.dtype.names or ()):
        return index["length"].astype(np.int64)
    return index["n_tokens"].astype(np.int64) + index["n_images"].astype(np.int64) * (
        image_tokens - 1
    )


def images_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings of pictures; empty without pictures."""
    return dict(recipe.get("images") or {})


def _shares(part: Counts, whole: Counts) -> Counts:
    """(N_SHARES,) how many of part / whole fall into each of equal bars; 100 % is in the last.

    Parts [1, 4] of [4, 4] are in the bars [5, 19] of 20.
    """
    bars = np.minimum(part * N_SHARES // whole, N_SHARES - 1)
    return np.bincount(bars, minlength=N_SHARES).astype(np.int64)
