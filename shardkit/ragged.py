"""Where do the items of ragged rows lie in one flat array?

Rows of different lengths lie after each other in a flat array. Three functions find places in it:
`offsets` where each row begins, `spread` every item of chosen rows, `within` each item in its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def offsets(lengths: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Where rows of these lengths begin, and where the last one ends: (n + 1,) int64.

    lengths [2, 0, 3] → [0, 2, 2, 5]
    """
    found = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=found[1:])
    return found


def spread(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """The index of every item of rows that begin at `starts`, row after row: (sum(lengths),) int64.

    starts [7, 0], lengths [2, 3] → [7, 8, 0, 1, 2]
    """
    first = np.asarray(starts, np.int64) - (np.cumsum(lengths, dtype=np.int64) - lengths)
    index = np.repeat(first, lengths)
    index += np.arange(len(index))
    return index


def within(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """The place of every item in its row, from 0: (sum(lengths),) int64.

    lengths [2, 0, 3] → [0, 1, 0, 1, 2]
    """
    return spread(np.zeros(len(lengths), np.int64), lengths)
