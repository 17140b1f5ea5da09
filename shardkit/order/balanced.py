"""Steps of nearly equal cost: samples change places inside a group, never between groups.

A step lasts as long as its slowest rank. In a random order of long-tailed data that rank costs
1.2 to 1.5 times the mean; where samples of like cost stand side by side, about 1.01.

    S ─ groups of D positions ─► sorted by cost (whole group, each lane, or each step)
      ─► dealt to the ranks in snake order ─► the steps of the group in a random order

Every place is a function of position, index and state alone: found from its group, O(D) and
independent of the epoch's size (docs/format.md, section 8.8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardkit.order.by_length import Order, ShardRows, WithinGroups
from shardkit.order.permute import U64, derive_key, permute

Scope = Literal["lanes", "group", "step"]
"""Among which samples places are exchanged: those of one lane, of the group, of one step."""
Costs = Callable[[NDArray[np.int64], NDArray[np.int64]], U64]
"""(shards, rows) → (n,) cost of each sample, from the index."""

PURPOSE_STEPS = 5
"""docs/format.md, section 8.8: the key of the order of a group's steps."""
_FEW_CLASSES = 4
"""More classes of a group than these are laid out together: a rank needs few, a plan all."""
_EVERY = -1


@dataclass(frozen=True, slots=True)
class Balance:
    """How the samples of a group are laid out; part of a loader's state."""

    scope: Scope
    step: int
    """Rows of a global batch, G."""
    rows: int
    """Rows of a rank's batch, B."""
    weights: tuple[int, int, int]
    """What a token, a squared token and an image token cost."""


@dataclass
class BalancedOrder(WithinGroups):
    """An order whose steps cost nearly the same on every rank.

    What a group has beyond whole steps stays in its place, so that what `drop_last` leaves out is
    not always the cheapest.
    """

    order: Order
    costs: Costs
    balance: Balance
    group: int
    """Positions of a group, D: a multiple of G."""
    lanes: int
    chunk: int
    seed: int
    epoch: int
    _laid: dict[tuple[int, int], U64] = field(default_factory=dict, repr=False)

    def locate(self, positions: U64) -> ShardRows:
        """The (shard, row) of each position."""
        return self.order.locate(self.source(positions))

    def source(self, positions: U64) -> U64:
        """The position of S whose sample stands at each position."""
        found = positions.copy()
        groups = positions // np.uint64(self.group)
        for group in np.unique(groups).tolist():
            begin, n_steps = group * self.group, self._n_steps(group)
            within = (positions - np.uint64(begin)).astype(np.int64)
            mine = np.flatnonzero((groups == group) & (within < n_steps * self.balance.step))
            if len(mine):
                step, rest = np.divmod(within[mine], self.balance.step)
                places = self._steps(group, n_steps)[step] * self.balance.step + rest
                found[mine] = self._at(group, places)
        return found

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_laid": {}}

    def _n_steps(self, group: int) -> int:
        """Whole steps of a group."""
        end = (group + 1) * self.group
        if self.order.n_samples is not None:
            end = min(end, self.order.n_samples)
        return max(0, end - group * self.group) // self.balance.step

    def _steps(self, group: int, n_steps: int) -> NDArray[np.int64]:
        """Which laid-out step each step of the group is."""
        steps = np.arange(n_steps, dtype=np.uint64)
        if self.balance.scope != "step" and n_steps:
            key = derive_key(self.seed, self.epoch, PURPOSE_STEPS, group)
            steps = permute(steps, n_steps, key)
        return steps.astype(np.int64)

    def _at(self, group: int, places: NDArray[np.int64]) -> U64:
        """The positions of S at laid-out places of a group."""
        if self.balance.scope != "lanes":
            return self._layout(group, 0)[places]
        kinds = self._kinds(group)
        asked = np.unique(kinds[places])
        if len(asked) > _FEW_CLASSES:
            return self._layout(group, _EVERY)[places]
        found = np.empty(len(places), np.uint64)
        for kind in asked.tolist():
            mine = kinds[places] == kind
            own = np.flatnonzero(kinds == kind)
            found[mine] = self._layout(group, kind)[np.searchsorted(own, places[mine])]
        return found

    def _moved(self, position: int) -> int:
        group, within = divmod(position, self.group)
        step = self.balance.step
        n_steps = self._n_steps(group)
        if within >= n_steps * step:
            return position
        every = np.arange(n_steps * step, dtype=np.int64)
        if self.balance.scope == "lanes":
            kinds = self._kinds(group)
            every = np.flatnonzero(kinds == kinds[within])
        laid = self._at(group, every)
        place = int(every[np.flatnonzero(laid == np.uint64(position))[0]])
        turn = int(np.flatnonzero(self._steps(group, n_steps) == place // step)[0])
        return group * self.group + turn * step + place % step

    def _kinds(self, group: int) -> NDArray[np.int64]:
        """The class `(p // chunk) % lanes` of each position of the group's whole steps."""
        begin = group * self.group
        positions = np.arange(begin, begin + self._n_steps(group) * self.balance.step)
        kinds: NDArray[np.int64] = positions // self.chunk % self.lanes
        return kinds

    def _layout(self, group: int, kind: int) -> U64:
        """The positions of S of a group as they are laid out: of one class, or of _EVERY class."""
        found = self._laid.get((group, kind))
        if found is None:  # another thread may clear them at any time
            if len(self._laid) >= 2 * self.lanes + 2:
                self._laid.clear()
            found = self._laid[group, kind] = self._lay(group, kind)
        return found

    def _lay(self, group: int, kind: int) -> U64:
        balance, begin = self.balance, group * self.group
        own = np.arange(begin, begin + self._n_steps(group) * balance.step, dtype=np.uint64)
        if balance.scope == "lanes":
            kinds = self._kinds(group)
            if kind == _EVERY:
                found: U64 = np.empty_like(own)
                # kinds [0, 1, 0], costs [1, 5, 9]: [2, 0, 1] by class and cost go to [0, 2, 1]
                dearest = np.lexsort((self._cheapness(own), kinds))
                found[np.argsort(kinds, kind="stable")] = own[dearest]
                return found
            chosen: U64 = own[kinds == kind]
            return chosen[np.argsort(self._cheapness(chosen), kind="stable")]
        if balance.scope == "step":
            sets = self._cheapness(own).reshape(-1, balance.step)
            dearest = np.argsort(sets, axis=1, kind="stable")
            own = np.take_along_axis(own.reshape(-1, balance.step), dearest, axis=1).reshape(-1)
        else:
            own = own[np.argsort(self._cheapness(own), kind="stable")]
        return own.reshape(-1, balance.step)[:, snake(balance.step, balance.rows)].reshape(-1)

    def _cheapness(self, positions: U64) -> U64:
        """(n,) the complement of the cost: a stable ascending sort has the dearest first, and
        equal ones in order. Costs [1, 9, 9] are sorted as positions [1, 2, 0]."""
        return ~self.costs(*self.order.locate(positions))


def snake(step: int, rows: int) -> NDArray[np.int64]:
    """(step,) which of a step's samples, dearest first, stands at each place of it.

    Samples go to the ranks in turn, and back: 3 ranks of 2 rows have 0 5, 1 4, 2 3. A step that is
    not a multiple of `rows` is left in order.
    """
    numbers = np.arange(step)
    if step % rows:
        return numbers
    turns = numbers.reshape(rows, -1)  # one row of each rank
    turns[1::2] = turns[1::2, ::-1].copy()
    return turns.T.reshape(-1)
