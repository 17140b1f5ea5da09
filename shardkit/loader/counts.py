"""How many labels a step of the optimizer counts, on all ranks together: from the indexes alone.

The order of an epoch is a function of position, and the index says of every sample how many of
its labels count. So each rank knows the number of the whole step without asking the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.loader.batches import IndexFacts
from shardkit.loader.dataset import ShardDataset
from shardkit.loader.iteration import Progress
from shardkit.order.arrangement import Arrangement
from shardkit.order.by_length import Order
from shardkit.order.cost import DEFAULT_WEIGHTS

MAX_KEPT_BYTES = 256 << 20
"""Bytes of index columns kept; beyond them those that were not used for longest are let go."""
_COUNTED = ("n_supervised", "n_first")
_SIZES = ("length", "cost2", "n_images", "n_image_tokens")
"""Columns that orders by length or cost ask for."""


class Indexes:
    """Columns of the indexes of some datasets, shard by shard, read when they are asked for.

    Shards are numbered through all members.
    """

    def __init__(self, members: Sequence[Dataset], columns: Sequence[str]) -> None:
        self.members = tuple(members)
        self.columns = [*columns]
        self._ends = np.cumsum([len(one.manifest.shards) for one in self.members])
        self._kept: OrderedDict[int, NDArray[np.void]] = OrderedDict()
        self._n_bytes = 0

    def index(self, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.void]:
        """(n,) the columns of these samples; raises what Dataset.index raises."""
        each, which = np.unique(numbers, return_inverse=True)
        found: NDArray[np.void] | None = None
        for i, number in enumerate(each.tolist()):
            mine = which == i
            table = self._table(number)
            found = np.empty(len(rows), table.dtype) if found is None else found
            found[mine] = table[rows[mine]]
        return np.empty(0, [(name, "<u8") for name in self.columns]) if found is None else found

    def _table(self, number: int) -> NDArray[np.void]:
        table = self._kept.get(number)
        if table is not None:
            self._kept.move_to_end(number)
            return table
        place = int(np.searchsorted(self._ends, number, side="right"))
        member = self.members[place]
        whole = member.index(number - int(self._ends[place]) + len(member.manifest.shards))
        table = self._kept[number] = _columns(whole, self.columns)
        self._n_bytes += table.nbytes
        while self._n_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            self._n_bytes -= self._kept.popitem(last=False)[1].nbytes
        return table


@dataclass(frozen=True, slots=True)
class Step:
    """The positions of an optimizer step, of all ranks: begin to end - 1."""

    begin: int
    end: int
    is_done: bool
    """Whether the latest batch is the last one of the step."""

    @classmethod
    def of(
        cls, place: Progress, *, accumulation: int, per_batch: int, n_batches: int | None
    ) -> Step:
        """The optimizer step that the latest batch of an iteration belongs to.

        `place`: the iteration's, behind that batch; `accumulation`: batches of a step;
        `n_batches`: of the whole iteration; `per_batch`: positions of a batch of all ranks.
        """
        batch = (place.position - place.begun_at) // per_batch - 1
        first = batch // accumulation * accumulation
        last = first + accumulation
        if n_batches is not None:
            last = min(last, n_batches)
        begin, end = (place.begun_at + n * per_batch for n in (first, last))
        return cls(begin, end, is_done=batch + 1 == last)


class Counts:
    """Labels that count in stretches of an epoch of a dataset."""

    def __init__(self, dataset: ShardDataset) -> None:
        self._dataset = dataset
        self._begin(None)

    def _begin(self, arrangement: Arrangement | None) -> None:
        self._arrangement = arrangement
        grouping = _SIZES if arrangement is not None and arrangement.group else ()
        self._indexes = Indexes(self._dataset.members, [*_COUNTED, *grouping])
        self._orders: dict[int, Order] = {}
        self._latest: tuple[tuple[int, int, int], int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_dataset": self._dataset}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_dataset"])  # type: ignore[misc]

    def n_supervised(self, arrangement: Arrangement, epoch: int, begin: int, end: int) -> int:
        """Supervised tokens of positions begin to end - 1, without those beyond the epoch's end."""
        if arrangement != self._arrangement:
            self._begin(arrangement)
        asked = epoch, begin, end
        if self._latest is not None and self._latest[0] == asked:
            return self._latest[1]
        n = self._count(arrangement, epoch, begin, end)
        self._latest = asked, n
        return n

    def _count(self, arrangement: Arrangement, epoch: int, begin: int, end: int) -> int:
        if epoch not in self._orders:
            weights = DEFAULT_WEIGHTS
            if arrangement.balance is not None:
                weights = arrangement.balance.weights
            facts = IndexFacts(self._dataset.members, weights, self._indexes)
            self._orders = {epoch: self._dataset.order(arrangement, epoch, facts)}
        order = self._orders[epoch]
        last = end if order.n_samples is None else min(end, order.n_samples)
        if last <= begin:
            return 0
        found = self._indexes.index(*order.locate(np.arange(begin, last, dtype=np.uint64)))
        with_label, first = (found[name].sum(dtype=np.int64) for name in _COUNTED)
        return int(with_label - first)


def _columns(index: NDArray[np.void], names: Sequence[str]) -> NDArray[np.void]:
    """A copy of some columns, and nothing else."""
    kept = np.empty(len(index), [(name, index.dtype[name]) for name in names])
    for name in names:
        kept[name] = index[name]
    return kept
