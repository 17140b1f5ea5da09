"""How do the pieces of many rows become samples, without a loop over tokens?

A run is a stretch of ids in a pool that has one label rule: all in the loss, or none. A constant
or a plain text is one run; a text with supervised characters, or a row of ids, is as many runs as
its mask has stretches. `runs_of` writes the pieces of each row out as runs; `build` cuts, counts
and gathers them, all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardkit.format.samples import IGNORE_INDEX, Samples
from shardkit.ragged import offsets, spread
from shardkit.tokens.pieces import IMAGE, N_CONSTANTS, Pieces
from shardkit.tokens.tokenizer_engines import Flat

BEYOND = "beyond max length"
"""Stands in the detail of every row that was rejected because max_length cut its answers off."""


@dataclass(frozen=True, slots=True)
class Runs:
    """m runs in n rows, as a struct of arrays."""

    pool: NDArray[np.int32]
    """Ids that runs point into."""
    source: NDArray[np.int64]
    """(m,) first id of the run in the pool."""
    length: NDArray[np.int64]
    """(m,) ids of the run."""
    supervised: NDArray[np.bool_]
    """(m,) in the loss."""
    is_image: NDArray[np.bool_]
    """(m,) one image placeholder, or all that stands for one picture."""
    rows: NDArray[np.int64]
    """(n + 1,) the runs of row i are rows[i]:rows[i + 1]."""


@dataclass(frozen=True, slots=True)
class Built:
    """Samples from runs: those rows that kept a supervised token."""

    samples: Samples
    kept: NDArray[np.int64]
    """(k,) the numbers of the rows that were kept, ascending."""
    n_images: NDArray[np.int64]
    """(k,) per kept row: images whose placeholder is still there (the first ones)."""
    n_images_cut: NDArray[np.int64]
    """(k,) per kept row: images whose placeholder was cut off."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Entries, each of some runs: entry i has the runs first[i]:first[i + 1].

    The other arrays are (m,), one value a run, as in `Runs`.
    """

    first: NDArray[np.int64]
    source: NDArray[np.int64]
    length: NDArray[np.int64]
    supervised: NDArray[np.bool_]
    is_image: NDArray[np.bool_]

    @classmethod
    def joined(cls, tables: list[Self]) -> Self:
        """The entries of all tables after each other."""
        counts = np.concatenate([np.diff(table.first) for table in tables])
        return cls(
            offsets(counts),
            np.concatenate([table.source for table in tables]),
            np.concatenate([table.length for table in tables]),
            np.concatenate([table.supervised for table in tables]),
            np.concatenate([table.is_image for table in tables]),
        )


def runs_of(
    pieces: Pieces,
    flat: Flat,
    mask: NDArray[np.bool_] | None,
    constants: list[NDArray[np.int32]],
    placeholder: int,
    blocks: NDArray[np.int64] | None = None,
) -> Runs:
    """The runs of every row of `pieces`, whose texts have the ids `flat`.

    `mask` says per token of `flat` whether it is in the loss (None: whole texts are); `blocks`
    which picture it stands for (0: none).

    Entries are the constants, then the texts, then the token rows. With 2 texts, the order
    [0, 6, -1] (BOS, the second text, the first token row) is of the entries [0, 6, 7].
    """
    n_fixed = sum(map(len, constants))
    n_flat = n_fixed + len(flat[0])
    tables = [_constants_table(constants)]
    tables.append(_texts_table(flat[1], mask, n_fixed, blocks))
    pool = [*constants, flat[0]]
    if pieces.token_rows:
        ids = [ids for ids, _ in pieces.token_rows]
        labels = np.concatenate([labels for _, labels in pieces.token_rows])
        starts = offsets([len(row) for row in ids])
        joined = np.concatenate(ids)
        tables.append(
            _split(starts, labels != IGNORE_INDEX, _each(joined == placeholder), pool_start=n_flat)
        )
        pool += ids
    table = _Table.joined(tables)
    rows = pieces.rows()
    order = rows.order
    entry = np.where(order >= 0, order, N_CONSTANTS + len(pieces.texts) - 1 - order)
    count = np.diff(table.first)[entry]
    run = spread(table.first[entry], count)
    flags = np.repeat(rows.supervised, count)
    ends = np.concatenate([[0], rows.ends])
    return Runs(
        pool=np.concatenate(pool),
        source=table.source[run],
        length=table.length[run],
        supervised=flags & table.supervised[run],
        is_image=table.is_image[run],
        rows=offsets(count)[ends],
    )


def _constants_table(constants: list[NDArray[np.int32]]) -> _Table:
    starts = offsets([len(ids) for ids in constants])
    n = len(constants)
    is_image = np.zeros(n, bool)
    is_image[IMAGE] = True
    return _Table(np.arange(n + 1), starts[:-1], np.diff(starts), np.ones(n, bool), is_image)


def _each(is_image: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A block for each image that is one token.

    is_image [F, T, F, T, T] → [0, 1, 0, 2, 3]: neighbours differ, so each begins a run.
    """
    return np.where(is_image, np.cumsum(is_image), 0)


def _texts_table(
    starts: NDArray[np.int64],
    mask: NDArray[np.bool_] | None,
    first: int,
    blocks: NDArray[np.int64] | None,
) -> _Table:
    n = len(starts) - 1
    if mask is None:
        ones, zeros = np.ones(n, bool), np.zeros(n, bool)
        return _Table(np.arange(n + 1), starts[:-1] + first, np.diff(starts), ones, zeros)
    blocks = np.zeros(len(mask), np.int64) if blocks is None else blocks
    return _split(starts, mask, blocks, pool_start=first)


def _split(
    starts: NDArray[np.int64],
    mask: NDArray[np.bool_],
    blocks: NDArray[np.int64],
    *,
    pool_start: int,
) -> _Table:
    """Entries at `starts`, split where the mask changes and around every image.

    starts [0, 3, 4], mask [F, F, T, T], no images → runs begin at 0, 2 and 3; their entries are
    0, 0 and 1, so that entry 0 has runs 0:2 and entry 1 has run 2:3.
    """
    n = len(mask)
    is_begin = np.zeros(n + 1, bool)
    is_begin[starts] = True
    is_begin[1:n] |= (mask[1:] != mask[:-1]) | (blocks[1:] != blocks[:-1])
    begin = np.flatnonzero(is_begin[:n])
    owner = np.searchsorted(starts, begin, side="right") - 1
    return _Table(
        offsets(np.bincount(owner, minlength=len(starts) - 1)),
        begin + pool_start,
        np.diff(np.append(begin, n)),
        mask[begin],
        blocks[begin] > 0,
    )


def build(runs: Runs, *, max_length: int | None, image_tokens: int) -> Built:
    """Cut every row to its head, drop the rows without a supervised token, gather the rest.

    A placeholder counts `image_tokens` towards `max_length` and is kept whole or not at all;
    nothing after it is kept when it is not.
    """
    n_rows = len(runs.rows) - 1
    row = np.repeat(np.arange(n_rows), np.diff(runs.rows))
    length = runs.length
    if max_length is not None:
        length = _cut(runs, row, max_length, image_tokens)
    n_tokens = _sum_by_row(row, length, n_rows)
    n_before = _sum_by_row(row, runs.length, n_rows)
    n_supervised = _sum_by_row(row, length * runs.supervised, n_rows)
    kept = np.flatnonzero(n_supervised > 0)
    length = length * (n_supervised > 0)[row]
    images = _sum_by_row(row, (length > 0) & runs.is_image, n_rows)
    images_before = _sum_by_row(row, runs.is_image, n_rows)
    ids, labels = _gather(runs, length)
    samples = Samples(
        ids=ids,
        labels=labels,
        starts=offsets(n_tokens[kept]),
        source=np.zeros(len(kept), np.uint32),
        record=np.zeros(len(kept), np.uint64),
        n_cut=(n_before - n_tokens)[kept].astype(np.uint32),
    )
    return Built(samples, kept, images[kept], (images_before - images)[kept])


def why_without_loss(runs: Runs, row: int, max_length: int | None, image_tokens: int) -> str:
    """What to say of a row that `build` drops: it never had a label, or the cut took them all."""
    part = slice(runs.rows[row], runs.rows[row + 1])
    each = np.where(runs.is_image[part], image_tokens, 1)
    n_tokens = int((each * runs.length[part]).sum())
    n_supervised = int(runs.length[part][runs.supervised[part]].sum())
    if not n_supervised:
        return f"{n_tokens} tokens, none of them of an answer with loss"
    return without_loss(n_tokens, n_supervised, max_length)


def without_loss(n_tokens: int, n_supervised: int, max_length: int | None) -> str:
    """What to say of a row whose tokens with a label were all cut off."""
    return f"{n_tokens} tokens, all {n_supervised} of answers {BEYOND} {max_length}"


def _cut(
    runs: Runs, row: NDArray[np.int64], max_length: int, image_tokens: int
) -> NDArray[np.int64]:
    """The length that truncation leaves of each run.

    Rows of runs [3, 4] and [5], max_length 5: room is [5, 2] and [5], left [3, 2] and [5].
    """
    weight = np.where(runs.is_image, image_tokens * runs.length, runs.length)
    before = np.cumsum(weight) - weight
    is_first = runs.rows[:-1][np.diff(runs.rows) > 0]
    begin = np.zeros(len(runs.rows) - 1, np.int64)
    begin[np.diff(runs.rows) > 0] = before[is_first]
    room = max_length - (before - begin[row])
    left = np.clip(room, 0, runs.length)
    return np.where(runs.is_image, np.where(room >= weight, runs.length, 0), left)


def image_places(runs: Runs, row: int) -> list[tuple[int, int]]:
    """(first token in the row, tokens) of every image of a row, cut or not."""
    part = slice(runs.rows[row], runs.rows[row + 1])
    length, is_image = runs.length[part], runs.is_image[part]
    first = np.cumsum(length) - length
    return list(zip(first[is_image].tolist(), length[is_image].tolist(), strict=True))


def _sum_by_row(
    row: NDArray[np.int64], values: NDArray[np.int64] | NDArray[np.bool_], n_rows: int
) -> NDArray[np.int64]:
    """(n_rows,) the sum of the values of each row: row [0, 0, 2], values [3, 4, 5] → [7, 0, 5]."""
    return np.bincount(row, weights=values, minlength=n_rows).astype(np.int64)


def _gather(runs: Runs, length: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(ids, labels) of all runs after each other."""
    ids = runs.pool[spread(runs.source, length)]
    labels = np.where(np.repeat(runs.supervised, length), ids, np.int32(IGNORE_INDEX))
    return ids, labels
