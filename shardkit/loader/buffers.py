"""Memory of batches, used again as soon as nothing refers to it any more."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_KEPT = 24
"""Arrays kept at most; with more in use than this, new ones are made and not kept."""


class Buffers:
    """int64 arrays for one thread that makes batches.

    The system takes large blocks back when they are freed and hands out zeroed pages, which
    costs as much as filling them; so arrays are kept here. One is given out again only when
    nothing else refers to it, which is when it would have been freed otherwise: no tensor, array
    or view that anybody still holds can change.
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[np.int64]] = []

    def take(self, *shape: int) -> NDArray[np.int64]:
        """An array of this shape whose values are arbitrary."""
        n = math.prod(shape)
        free = [i for i, count in enumerate(_references(self._kept)) if count == _UNUSED]
        for i in reversed(free):  # the latest is likeliest to be in the processor's cache
            if self._kept[i].size >= n:
                return self._kept[i][:n].reshape(shape)
        for i in reversed(free):  # all too small: let go of them
            del self._kept[i]
        made = np.empty(n + n // 4, np.int64)
        if len(self._kept) < MAX_KEPT:
            self._kept.append(made)
        return made[:n].reshape(shape)


def _references(arrays: Sequence[NDArray[np.int64]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


_UNUSED = _references([np.empty(0, np.int64)])[0]
"""What _references gives for an array that only its list refers to."""
