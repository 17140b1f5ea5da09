"""Samples looked up in the indexes of their shards, many at once: where they lie, what to check."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.format.layout import BLOCK, FLAG_DESIRABLE, INDEX_DTYPE, TOKENS_START
from shardkit.loader.collate import PLAIN_ROWS
from shardkit.loader.open_shards import RECORD, OpenShard, OpenShards

_WORD = 4
"""Bytes of one int32 token. Every token of a shard begins at a multiple of it."""
PLAIN = -1
"""What stands for a frame number of a sample of an uncompressed shard."""


@dataclass(slots=True)
class ToCheck:
    """What the hashes of a block's samples are to be, and of which bytes."""

    is_fresh: bytearray
    """A byte a sample: 1 when it was not checked yet, else 0."""
    n_fresh: int
    begins: list[int]
    ends: list[int]
    """Bytes of each sample's span, from the start of its file or frame."""
    hashes: list[int]


class Group(NamedTuple):
    """The samples of a block that lie in one shard."""

    number: int
    opened: OpenShard
    rows: NDArray[np.int64]
    """(n,) rows of these samples in the shard, in the order of the block."""


@dataclass(slots=True)
class Block:
    """Where some samples are: found at once for many batches, read batch by batch."""

    numbers: NDArray[np.int64]
    """(n,) shards, counted over all members."""
    rows: NDArray[np.int64]
    """(n,) rows in their shards."""
    opened: list[OpenShard]
    starts: list[int]
    """The first token of each sample, in int32 words from the start of its file or frame."""
    ends: list[int]
    """Where the tokens of each sample end, in int32 words from the start of its file or frame."""
    n_images: NDArray[np.int64] | None
    """(n,) images of each sample; None when no dataset has any."""
    image_starts: list[int] | None
    """Where the header of each sample's first image is, or would be: bytes from the start of the
    file or frame."""
    groups: list[Group]
    to_check: ToCheck | None
    """The hashes that are to be checked; None when all were checked before."""
    frames: list[tuple[int, int]] | None
    """(shard, frame) of each sample, PLAIN of a plain shard; None when no member is compressed."""
    documents: list[NDArray[np.int64]] | None
    """The tokens of each row's documents; None when rows are single documents."""
    flags: NDArray[np.uint32]
    """(n,) what the index notes of each sample (FLAG_DESIRABLE)."""
    looked_at: float = field(default_factory=time.monotonic)
    """The time.monotonic() at which the block's files were last seen to have all their bytes."""


def find(
    shards: OpenShards,
    numbers: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    has_documents: bool,
    has_images: bool,
    is_compressed: bool,
    checks_always: bool,
) -> Block:
    """Look samples up in the indexes of their shards, which are opened as needed.

    `checks_always`: also samples whose hash was seen to be right are to be checked. Raises what
    Dataset.open_shard raises.
    """
    groups, order = _groups(shards, numbers, rows)
    index = _index(groups, order)
    offsets = index["offset"].astype(np.int64)
    frames = _frames_of(groups, order, offsets) if is_compressed else None
    starts = (offsets + TOKENS_START) // _WORD
    ends = starts + PLAIN_ROWS * index["n_tokens"].astype(np.int64)
    n_images = index["n_images"].astype(np.int64) if has_images else None
    n_rows = _n_rows(groups, order)
    image_starts = _to_blocks(_WORD * (starts + n_rows * index["n_tokens"].astype(np.int64)))
    by_number = {group.number: group.opened for group in groups}
    opened = [by_number[number] for number in numbers.tolist()]
    return Block(
        numbers=numbers,
        rows=rows,
        opened=opened,
        starts=starts.tolist(),
        ends=ends.tolist(),
        n_images=n_images,
        image_starts=None if n_images is None else image_starts.tolist(),
        groups=groups,
        to_check=_to_check(groups, order, index, offsets, checks_always),
        frames=frames,
        documents=_documents(opened, rows) if has_documents else None,
        flags=index["flags"],
    )


def _documents(opened: Sequence[OpenShard], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The tokens of the documents of each row."""
    return [
        held.documents[held.firsts[row] : held.firsts[row + 1]]
        for held, row in zip(opened, rows.tolist(), strict=True)
    ]


def desirable(block: Block, first: int, last: int) -> NDArray[np.bool_]:
    """Whether the answers of samples first to last - 1 of the block are good ones."""
    return (block.flags[first:last] & np.uint32(FLAG_DESIRABLE)) > 0


def image_documents(block: Block, samples: Sequence[int]) -> NDArray[np.int64]:
    """(n_images,) the number of each image's document among those of some packs.

    Three documents with [1, 0, 2] images: [0, 2, 2].
    """
    counts = []
    for i in samples:
        opened, row = block.opened[i], int(block.rows[i])
        part = slice(int(opened.firsts[row]), int(opened.firsts[row + 1]))
        if opened.shard.segments is not None:
            counts.append(opened.shard.segments["n_images"][part].astype(np.int64))
    flat = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    return np.repeat(np.arange(len(flat)), flat)


def index_of(
    shards: OpenShards, numbers: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.void]:
    """(n,) INDEX_DTYPE rows of samples, from the indexes alone."""
    return _index(*_groups(shards, numbers, rows))


def _groups(
    shards: OpenShards, numbers: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[list[Group], NDArray[np.int64]]:
    """The samples shard by shard, all open, and the place in the block of each of them.

    numbers [4, 2, 4] → order [1, 0, 2], shard 2 with the first of them, shard 4 with the others.
    """
    order = np.argsort(numbers, kind="stable")
    grouped, rows = numbers[order], rows[order]
    borders = [0, *(np.flatnonzero(np.diff(grouped)) + 1).tolist(), len(grouped)]
    found = grouped[borders[:-1]].tolist() if len(grouped) else []
    groups = [
        Group(number, shards.open(number), rows[begin:end])
        for number, (begin, end) in zip(found, pairwise(borders), strict=False)
    ]
    shards.let_go(len(groups))
    return groups, order


def _index(groups: Sequence[Group], order: NDArray[np.int64]) -> NDArray[np.void]:
    """The index rows of a block's samples, in the order of the block."""
    index = np.empty(len(order), INDEX_DTYPE)
    if groups:
        records = np.concatenate([group.opened.records.take(group.rows) for group in groups])
        index.view(RECORD)[order] = records
    return index


def _frames_of(
    groups: Sequence[Group], order: NDArray[np.int64], offsets: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """(shard, frame) of a block's samples; makes `offsets` count from the start of the frame."""
    numbers, frames = np.empty(len(order), np.int64), np.full(len(order), PLAIN)
    end = 0
    for number, opened, rows in groups:
        begin, end = end, end + len(rows)
        where = order[begin:end]
        numbers[where] = number
        if opened.shard.is_compressed:
            frames[where], starts = opened.shard.frames_of(rows)
            offsets[where] -= starts
    return list(zip(numbers.tolist(), frames.tolist(), strict=True))


def _to_check(
    groups: Sequence[Group],
    order: NDArray[np.int64],
    index: NDArray[np.void],
    offsets: NDArray[np.int64],
    checks_always: bool,
) -> ToCheck | None:
    """The hashes of a block that are to be checked; None when all were, before."""
    is_fresh = np.full(len(order), checks_always)
    if groups and not checks_always:
        is_checked = np.concatenate([g.opened.shard.is_checked[g.rows] for g in groups])
        is_fresh[order] = ~is_checked
    n_fresh = int(np.count_nonzero(is_fresh))
    if not n_fresh:
        return None
    ends = offsets + index["span"].astype(np.int64)
    fresh = bytearray(is_fresh.tobytes())
    return ToCheck(fresh, n_fresh, offsets.tolist(), ends.tolist(), index["hash"].tolist())


def _n_rows(groups: Sequence[Group], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) token rows that the shard of each sample has."""
    n_rows = np.empty(len(order), np.int64)
    counts = [group.opened.shard.n_rows for group in groups]
    n_rows[order] = np.repeat(counts, [len(group.rows) for group in groups])
    return n_rows


def _to_blocks(n_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    return (n_bytes + BLOCK - 1) // BLOCK * BLOCK
