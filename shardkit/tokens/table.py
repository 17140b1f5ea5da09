"""Which runs is a piece made of?

A constant or a plain text is one run. A text with supervised characters, or a row of ids, is as
many runs as its mask has stretches. Pieces point to entries of one table; `runs_of` writes them
out as the runs of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardkit.format.samples import IGNORE_INDEX
from shardkit.tokens.engines import Flat, starts_of
from shardkit.tokens.pieces import IMAGE, N_CONSTANTS, Pieces
from shardkit.tokens.runs import Runs


@dataclass(frozen=True, slots=True)
class _Table:
    """Entries, each of some runs: entry i has the runs first[i]:first[i + 1]."""

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
            starts_of(counts),
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
) -> Runs:
    """The runs of every row of `pieces`, whose texts have the ids `flat`.

    `mask` says per token of `flat` whether it is in the loss (None: whole texts are).
    """
    n_fixed = sum(map(len, constants))
    n_flat = n_fixed + len(flat[0])
    tables = [_constants_table(constants)]
    tables.append(_texts_table(flat[1], mask, n_fixed))
    pool = [*constants, flat[0]]
    if pieces.token_rows:
        ids = [ids for ids, _ in pieces.token_rows]
        labels = np.concatenate([labels for _, labels in pieces.token_rows])
        starts = starts_of([len(row) for row in ids])
        joined = np.concatenate(ids)
        tables.append(
            _split(starts, labels != IGNORE_INDEX, joined == placeholder, pool_start=n_flat)
        )
        pool += ids
    table = _Table.joined(tables)
    rows = pieces.rows()
    order = rows.order
    entry = np.where(order >= 0, order, N_CONSTANTS + len(pieces.texts) - 1 - order)
    count = np.diff(table.first)[entry]
    run = np.repeat(table.first[entry] - (np.cumsum(count) - count), count)
    run += np.arange(len(run))
    flags = np.repeat(rows.supervised, count)
    ends = np.concatenate([[0], rows.ends])
    return Runs(
        pool=np.concatenate(pool),
        source=table.source[run],
        length=table.length[run],
        supervised=flags & table.supervised[run],
        is_image=table.is_image[run],
        rows=starts_of(count)[ends],
    )


def _constants_table(constants: list[NDArray[np.int32]]) -> _Table:
    starts = starts_of([len(ids) for ids in constants])
    n = len(constants)
    is_image = np.zeros(n, bool)
    is_image[IMAGE] = True
    return _Table(np.arange(n + 1), starts[:-1], np.diff(starts), np.ones(n, bool), is_image)


def _texts_table(starts: NDArray[np.int64], mask: NDArray[np.bool_] | None, first: int) -> _Table:
    n = len(starts) - 1
    if mask is None:
        ones, zeros = np.ones(n, bool), np.zeros(n, bool)
        return _Table(np.arange(n + 1), starts[:-1] + first, np.diff(starts), ones, zeros)
    return _split(starts, mask, np.zeros(len(mask), bool), pool_start=first)


def _split(
    starts: NDArray[np.int64],
    mask: NDArray[np.bool_],
    is_image: NDArray[np.bool_],
    *,
    pool_start: int,
) -> _Table:
    """Entries at `starts`, split where the mask changes and around every image."""
    n = len(mask)
    is_begin = np.zeros(n + 1, bool)
    is_begin[starts] = True
    is_begin[1:n] |= (mask[1:] != mask[:-1]) | is_image[1:] | is_image[:-1]
    begin = np.flatnonzero(is_begin[:n])
    owner = np.searchsorted(starts, begin, side="right") - 1
    return _Table(
        starts_of(np.bincount(owner, minlength=len(starts) - 1)),
        begin + pool_start,
        np.diff(np.append(begin, n)),
        mask[begin],
        is_image[begin],
    )
