"""What finished datasets hold, sample by sample: where its tokens lie, which row it is of.

A stretch is a run of tokens of one sample in one row of one shard. A sample of unpacked data is
one stretch; one that `concat` cut lies in several. Everything comes from indexes and segments,
about 60 bytes a stretch; no token is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.builder.plan import PURPOSE_ROWS
from shardkit.errors import CorruptShard
from shardkit.format.builds import builds_by_shard
from shardkit.format.manifest import Manifest, ShardEntry
from shardkit.format.shard import Shard
from shardkit.order.permute import derive_key, unpermute
from shardkit.ragged import offsets, within

STRETCH = np.dtype(
    [
        ("shard", "<u4"),
        ("row", "<u4"),
        ("segment", "<u4"),
        ("start", "<u4"),
        ("length", "<u4"),
        ("first_image", "<u4"),
        ("n_images", "<u4"),
        ("source", "<u4"),
        ("record", "<u8"),
        ("piece", "<u4"),
        ("first", "<u4"),
        ("n_cut", "<u4"),
        ("flags", "<u4"),
    ]
)
"""`start`: the stretch's first token in the row; `first_image`: images of the row before its own;
`first`: tokens of the sample before it; `source`: counted through all datasets."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard of one of the datasets."""

    path: Path
    entry: ShardEntry
    source_names: tuple[str, ...]

    def open(self) -> Shard:
        """Open it; raises what Shard.open raises."""
        return Shard.open(self.path, expected=self.entry, source_names=self.source_names)


@dataclass(frozen=True, slots=True)
class Stretches:
    """Stretches in the order of a build, sample after sample."""

    table: NDArray[np.void]
    """(m,) STRETCH rows."""
    heads: NDArray[np.int64]
    """(n + 1,) the stretches of sample i are heads[i]:heads[i + 1]."""

    def __len__(self) -> int:
        return len(self.heads) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each sample."""
        ends = offsets(self.table["length"])
        return np.diff(ends[self.heads])

    def of_samples(self, name: str) -> NDArray[np.int64]:
        """(n,) a field of each sample's first stretch."""
        return self.table[name][self.heads[:-1]].astype(np.int64)

    def summed(self, name: str) -> NDArray[np.int64]:
        """(n,) a field summed over each sample's stretches."""
        return np.diff(offsets(self.table[name])[self.heads])

    def chosen(self, which: NDArray[np.bool_]) -> Stretches:
        """The samples where `which` is set, (n,), in the order that they have."""
        counts = np.diff(self.heads)
        return Stretches(self.table[np.repeat(which, counts)], offsets(counts[which]))

    def cut_to(self, lengths: NDArray[np.int64]) -> Stretches:
        """Every sample's first `lengths` tokens, at least one; what goes is added to n_cut.

        A sample of stretches of 4 and 3 tokens, first [0, 4], cut to 5: left [5, 1], kept [4, 1];
        cut to 3: left [3, -1], kept [3, 0], so its second stretch goes.
        """
        table = self.table.copy()
        counts = np.diff(self.heads)
        left = np.repeat(lengths, counts) - table["first"].astype(np.int64)
        kept = np.clip(left, 0, table["length"].astype(np.int64))
        lost = self.lengths - lengths
        n_cut = self.summed("n_cut") + lost
        table["length"] = kept
        is_there = kept > 0
        counts = np.add.reduceat(is_there, self.heads[:-1], dtype=np.int64)
        table = table[is_there]
        heads = offsets(counts)
        table["n_cut"] = 0
        table["n_cut"][heads[1:] - 1] = n_cut
        return replace(self, table=table, heads=heads)


def shards_of(roots: Sequence[Path], manifests: Sequence[Manifest]) -> list[ShardFile]:
    """The shards of all datasets, in order."""
    return [
        ShardFile(root / entry.name, entry, build.source_names)
        for root, manifest in zip(roots, manifests, strict=True)
        for entry, build in zip(manifest.shards, builds_by_shard(manifest), strict=True)
    ]


def read_stretches(
    roots: Sequence[Path], manifests: Sequence[Manifest], shuffle_seed: int | None
) -> Stretches:
    """All samples of the datasets in the order in which a build of all their sources has them.

    Raises CorruptShard when a sample is not there from its first to its last token.
    """
    tables = list(_tables(roots, manifests))
    table = np.concatenate([np.zeros(0, STRETCH), *tables])
    n_rows = [source.n_rows for manifest in manifests for source in manifest.sources]
    rows = offsets(n_rows)[table["source"]] + table["record"].astype(np.int64)
    if shuffle_seed is not None:
        key = derive_key(shuffle_seed, 0, PURPOSE_ROWS)
        rows = unpermute(rows.astype(np.uint64), int(sum(n_rows)), key).astype(np.int64)
    order = np.lexsort((table["first"], table["piece"], rows))
    table, rows = table[order], rows[order]
    is_head = np.ones(len(table), np.bool_)
    is_head[1:] = (np.diff(rows) != 0) | (np.diff(table["piece"].astype(np.int64)) != 0)
    heads = np.append(np.flatnonzero(is_head), len(table))
    found = Stretches(table, heads)
    _check_whole(found, is_head)
    return found


def _tables(roots: Sequence[Path], manifests: Sequence[Manifest]) -> Iterator[NDArray[np.void]]:
    number, n_sources = 0, 0
    for root, manifest in zip(roots, manifests, strict=True):
        for entry, build in zip(manifest.shards, builds_by_shard(manifest), strict=True):
            shard = ShardFile(root / entry.name, entry, build.source_names).open()
            table = _packed(shard) if manifest.is_packed else _plain(shard)
            shard.close()
            table["shard"] = number
            table["source"] += np.uint32(n_sources + build.first_source)
            number += 1
            yield table
        n_sources += len(manifest.sources)


def _plain(shard: Shard) -> NDArray[np.void]:
    index = shard.index
    table = np.zeros(len(index), STRETCH)
    table["row"] = np.arange(len(index))
    table["length"] = index["n_tokens"]
    for name in ("n_images", "source", "record", "piece", "n_cut", "flags"):
        table[name] = index[name]
    return table


def _packed(shard: Shard) -> NDArray[np.void]:
    segments = np.zeros(0, STRETCH) if shard.segments is None else shard.segments
    table = np.zeros(len(segments), STRETCH)
    table["row"] = segments["sample"]
    names = ("start", "length", "n_images", "source", "record", "piece", "first", "n_cut")
    for name in names:
        table[name] = segments[name]
    counts = np.diff(shard.segment_starts)
    table["segment"] = within(counts)
    images = offsets(table["n_images"])[:-1]
    table["first_image"] = images - np.repeat(images[shard.segment_starts[:-1]], counts)
    return table


def _check_whole(found: Stretches, is_head: NDArray[np.bool_]) -> None:
    table = found.table
    ends = table["first"].astype(np.int64) + table["length"]
    expected = np.append(0, ends[:-1])[: len(table)]
    expected[is_head] = 0
    wrong = np.flatnonzero(table["first"] != expected)
    if len(wrong):
        one = table[wrong[0]]
        raise CorruptShard(
            "a sample is not whole: tokens are missing, or there twice",
            where=f"source {int(one['source'])}, row {int(one['record'])}",
            fix="Look at the datasets with `shardkit verify`.",
        )
