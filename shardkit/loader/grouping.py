"""The lengths by which an order sorts samples, from the indexes of the shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.loader.reader import Reader
from shardkit.order.by_length import Places


@dataclass
class IndexLengths:
    """Tokens and images of samples; opens the shards anew in every process that it is sent to."""

    members: Sequence[Dataset]
    _reader: Reader | None = field(default=None, repr=False)

    def __call__(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> Places:
        if self._reader is None:
            self._reader = Reader(self.members)
        index = self._reader.index(shards, rows)
        return index["n_tokens"].astype(np.int64), index["n_images"].astype(np.int64)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_reader": None}
