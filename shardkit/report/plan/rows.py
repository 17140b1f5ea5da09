"""What the indexes say of all rows, as columns: read once, looked up for every run of a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.format.shard import Shard
from shardkit.order.cost import Weights, costs_of
from shardkit.order.permute import U64
from shardkit.report.data import Members

Ints = NDArray[np.int64]

FIELDS = ("length", "n_supervised", "n_first", "n_images", "n_image_tokens", "cost2")
"""Fields of the index that are read (docs/format.md, section 6.2)."""
MAX_ROWS = 4_000_000
"""Rows that are kept; of more data some shards stand for the others."""
MAX_SHARDS_OF_URL = 8
"""Shards of a URL that are fetched, unless more are asked for."""


@dataclass(frozen=True)
class Documents:
    """The documents of the rows: what other packs would be made of."""

    length: Ints
    """(n,) places in the model."""
    n_supervised: NDArray[Any]
    """(n,) labels that a step counts; in a pack a document has a share of them by its tokens."""
    n_images: Ints
    n_image_tokens: NDArray[Any]


NO_DOCUMENTS = Documents(*(np.zeros(0, np.int64) for _ in range(4)))


@dataclass(frozen=True)
class Rows:
    """Columns of the rows of some shards; the other shards are taken to be like them."""

    columns: dict[str, NDArray[Any]]
    begins: Ints
    """(n_shards,) where the rows of each shard begin in the columns."""
    counts: Ints
    """(n_shards,) how many rows of each shard there are, 1 at least."""
    n_read: int
    open_s: float = 0.0
    """Seconds that opening an index took."""
    documents: Documents = NO_DOCUMENTS
    """The documents of the rows that were read; empty unless asked for."""

    def at(self, shards: Ints, rows: Ints) -> Ints:
        """Where in the columns these rows are, or those that stand for them."""
        return self.begins[shards] + rows % self.counts[shards]

    def costs(self, weights: Weights) -> Callable[[Ints, Ints], U64]:
        """Costs of rows, as an order asks for them."""
        every = costs_of(self.columns, weights)
        return lambda shards, rows: every[self.at(shards, rows)]

    def lengths(self, shards: Ints, rows: Ints) -> tuple[Ints, Ints]:
        """Lengths and pictures of rows, as an order asks for them."""
        at = self.at(shards, rows)
        return (
            self.columns["length"][at].astype(np.int64),
            self.columns["n_images"][at].astype(np.int64),
        )


def read_rows(
    members: Members,
    wanted: int | None = None,
    *,
    with_documents: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Rows:
    """Read the indexes of `wanted` shards (None: all that fit, of a URL 8); no token is read.

    Shards that are not read get the rows of one near them that is: of 4 shards [0, 3] are read, and
    stands_for is [0, 0, 1, 1]. Raises CorruptShard, MissingShard, StorageError.
    """
    sizes = np.concatenate([one.manifest.sizes for one in members.datasets])
    is_local = all(one.is_local for one in members.datasets)
    numbers = _chosen(sizes, wanted, is_local)
    parts: list[NDArray[np.void]] = []
    documents: list[Documents] = []
    took = 0.0
    for done, number in enumerate(numbers.tolist(), 1):
        member, own = members.place(number)
        dataset = members.datasets[member]
        copy = dataset.fetch(own)
        began = time.perf_counter()
        shard = dataset.open_shard(own, copy)
        parts.append(shard.index[list(FIELDS)].copy())
        took += time.perf_counter() - began
        if with_documents:
            documents.append(documents_of(shard))
        shard.close()
        if progress is not None:
            progress(done, len(numbers))
    index = np.concatenate(parts) if parts else np.zeros(0, [(name, "u8") for name in FIELDS])
    n_each = np.array([len(part) for part in parts], np.int64)
    begins = np.cumsum(n_each) - n_each
    stands_for = np.arange(len(sizes)) * len(numbers) // max(1, len(sizes))
    stands_for[numbers] = np.arange(len(numbers))
    columns = {name: np.ascontiguousarray(index[name]) for name in FIELDS}
    columns["n_supervised"] -= columns.pop("n_first")  # what a step counts
    return Rows(
        columns=columns,
        begins=begins[stands_for],
        counts=np.maximum(1, n_each[stands_for]),
        n_read=len(numbers),
        open_s=took / max(1, len(numbers)),
        documents=_joined(documents) if documents else NO_DOCUMENTS,
    )


def _chosen(sizes: Ints, wanted: int | None, is_local: bool) -> Ints:
    """The shards that are read: all, or some of those with rows, evenly spread."""
    filled = np.flatnonzero(sizes)
    if wanted is None:
        mean = max(1, int(sizes.sum()) // max(1, len(filled)))
        wanted = max(1, MAX_ROWS // mean) if is_local else MAX_SHARDS_OF_URL
    if wanted >= len(filled):
        return np.arange(len(sizes)) if len(filled) == len(sizes) else filled
    return filled[np.unique(np.linspace(0, len(filled) - 1, wanted).astype(np.int64))]


def documents_of(shard: Shard) -> Documents:
    """The documents of a shard's rows; pieces of one in several of its packs are one again.

    Pieces in packs of another shard stay documents of their own.
    """
    index = shard.index
    supervised = index["n_supervised"].astype(np.float64) - index["n_first"]
    images, tokens = index["n_images"].astype(np.int64), index["n_tokens"].astype(np.int64)
    image_tokens = index["n_image_tokens"].astype(np.float64)
    if shard.segments is None:
        return Documents(index["length"].astype(np.int64), supervised, images, image_tokens)
    pieces = shard.segments
    pack = np.repeat(np.arange(len(index)), np.diff(shard.segment_starts))
    share = pieces["length"] / np.maximum(1, tokens[pack])
    own = pieces["n_images"].astype(np.int64)
    extra = (index["length"].astype(np.int64) - tokens) // np.maximum(1, images)
    parts = Documents(
        pieces["length"].astype(np.int64) + own * extra[pack],
        supervised[pack] * share,
        own,
        (image_tokens / np.maximum(1, images))[pack] * own,
    )
    if not np.any(pieces["first"]):
        return parts
    keys = pieces[["source", "record", "piece"]]
    _, owner = np.unique(keys, return_inverse=True)
    owner = owner.reshape(-1)
    sums = (
        np.bincount(owner, values)
        for values in (parts.length, parts.n_supervised, parts.n_images, parts.n_image_tokens)
    )
    length, with_labels, n_images, in_images = sums
    return Documents(length.astype(np.int64), with_labels, n_images.astype(np.int64), in_images)


def _joined(parts: list[Documents]) -> Documents:
    names = ("length", "n_supervised", "n_images", "n_image_tokens")
    return Documents(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
