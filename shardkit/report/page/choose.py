"""Which samples a report shows: some of every kind, chosen by their number alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shardkit.format.shard import Shard
from shardkit.order.permute import derive_key, mix64_array

SEED = 20_251
N_SOURCES = 12
"""Source files of a shard, the first ones, of which each has samples of its own in the report."""

Place = tuple[int, int]
"""A shard's number and a row in it."""


class _Best:
    """The k places of lowest score that were offered."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._scores = np.zeros(0, np.uint64)
        self._places = np.zeros((0, 2), np.int64)

    def offer(self, scores: NDArray[np.uint64], number: int, rows: NDArray[np.int64]) -> None:
        places = np.stack([np.full(len(rows), number, np.int64), rows], axis=1)
        scores = np.concatenate([self._scores, scores])
        order = np.argsort(scores, kind="stable")[: self._k]
        self._scores = scores[order]
        self._places = np.concatenate([self._places, places])[order]

    def places(self) -> list[Place]:
        return [(int(number), int(row)) for number, row in self._places]


class Chooser:
    """Offered every shard, it keeps `n` samples: of all kinds, and apart from that any.

    The same dataset gives the same samples. Memory is that of the samples kept.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._kinds: dict[str, _Best] = {}

    def offer(
        self,
        shard: Shard,
        number: int,
        lengths: NDArray[np.int64],
        first_row: int,
        first_source: int,
    ) -> None:
        """Look at the index of a shard.

        `first_row`, `first_source`: of its first sample, and of its build's first source file,
        the position in the whole dataset.
        """
        index = shard.index
        rows = np.arange(len(index), dtype=np.int64)
        key = np.uint64(derive_key(SEED))
        scores = mix64_array((rows + first_row).astype(np.uint64) ^ key)
        longest = np.uint64(2**63) - lengths.astype(np.uint64)
        self._offer("first", np.uint64(first_row) + rows.astype(np.uint64), number, rows, 2)
        self._offer("longest", longest, number, rows, 2)
        self._offer("shortest", lengths.astype(np.uint64), number, rows, 1)
        kinds = {
            "truncated": index["n_cut"] > 0,
            "pictures": index["n_images"] > 0,
            "unanswered": index["n_supervised"] == 0,
        }
        if len(shard.segments if shard.segments is not None else index):
            for source in np.unique(index["source"])[:N_SOURCES].tolist():
                kinds[f"source {first_source + source}"] = index["source"] == source
        kinds["any"] = np.ones(len(index), np.bool_)
        for name, which in kinds.items():
            k = self._n if name == "any" else max(1, self._n // 8)
            self._offer(name, scores[which], number, rows[which], k)

    def _offer(
        self,
        name: str,
        scores: NDArray[np.uint64],
        number: int,
        rows: NDArray[np.int64],
        k: int,
    ) -> None:
        self._kinds.setdefault(name, _Best(k)).offer(scores, number, rows)

    def chosen(self) -> list[Place]:
        """The samples, in the order of the dataset: each kind in turn gives its next one."""
        found: dict[Place, None] = {}
        queues = [iter(best.places()) for best in self._kinds.values()]
        while queues and len(found) < self._n:
            queues = [queue for queue in queues if _take(queue, found, self._n)]
        return sorted(found)


def _take(queue: Iterable[Place], found: dict[Place, None], n: int) -> bool:
    """Add the queue's next place that is not there yet; False when it has none."""
    for place in queue:
        if len(found) < n and place not in found:
            found[place] = None
            return True
    return False
