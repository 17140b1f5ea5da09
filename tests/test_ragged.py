"""Places in flat arrays, against plain loops over lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardkit.ragged import offsets, spread, within

ROWS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=8)


@given(ROWS)
def test_offsets_and_spread_are_what_loops_find(rows: list[tuple[int, int]]) -> None:
    """Empty rows, no rows, and rows that overlap or go backwards."""
    starts = np.array([start for start, _ in rows], np.int64)
    lengths = np.array([length for _, length in rows], np.int64)

    assert offsets(lengths).tolist() == [int(lengths[:k].sum()) for k in range(len(rows) + 1)]
    assert spread(starts, lengths).tolist() == [a + k for a, n in rows for k in range(n)]
    assert within(lengths).tolist() == [k for _, n in rows for k in range(n)]
    assert offsets(lengths).dtype == spread(starts, lengths).dtype == np.int64


def test_unsigned_numbers_of_an_index_are_taken() -> None:
    """Lengths and starts as shard indexes hold them do not wrap around."""
    starts, lengths = np.array([0, 3], np.uint64), np.array([2, 1], np.uint32)

    assert offsets(lengths).tolist() == [0, 2, 3]
    assert spread(starts, lengths).tolist() == [0, 1, 3]
