"""Several datasets as one sequence whose every block holds their weights (docs/format.md, 8.7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardkit.order.epoch import DEFAULT_WINDOW, EpochOrder, Shuffle
from shardkit.order.permute import U64, derive_key, derive_keys, permute, unpermute

Until = Literal["first", "all", "endless"]

PURPOSE_BLOCK = 3
PURPOSE_MEMBER = 4
VANILLA_BLOCK = 256
"""Positions over which weights hold under a plain DataLoader, which does not say its batch size."""
_BITS = 32
_N_TRIED = 65
"""Numbers of blocks that a search looks at together: one costs nearly as much."""
_FULL = 1 << _BITS


def integer_weights(weights: Sequence[float | Fraction]) -> tuple[int, ...]:
    """The smallest integers in the same proportion; 0.1 means one tenth exactly."""
    exact = [Fraction(str(weight)) for weight in weights]
    common = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    return tuple(weight // gcd(*whole) for weight in whole)


@dataclass(frozen=True)
class MixtureOrder:
    """One sequence of the samples of several members, a function of these values alone.

    Position p is in block p // block. In every block member i has floor or ceil of
    `block * weights[i] / sum(weights)` places, in mixed order, and takes its own samples one
    after the other: its own epochs, each sample once in each of them, through all blocks and
    mixture epochs. `until`: a mixture epoch ends at the last whole block before a sample of any
    member would repeat (`first`), at the first block by which every member was seen whole
    (`all`), or never (`endless`).
    """

    sizes: tuple[NDArray[np.int64], ...]
    """For each member (n_shards,) samples of each shard."""
    weights: tuple[int, ...]
    seed: int
    epoch: int
    block: int
    shuffle: Shuffle = "full"
    window: int = DEFAULT_WINDOW
    until: Until = "first"
    _epochs: dict[tuple[int, int], EpochOrder] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def n_samples(self) -> int | None:
        """Positions of a mixture epoch; None when it is endless."""
        return None if self.until == "endless" else self._n_blocks * self.block

    def locate(self, positions: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The (shard, row in it) of each position; shards are counted through all members."""
        member, number = self.members_at(positions)
        shards = np.empty(len(positions), np.int64)
        rows = np.empty(len(positions), np.int64)
        own_epoch = number // self._totals[member]
        for i, epoch in {*zip(member.tolist(), own_epoch.tolist(), strict=True)}:
            mine = (member == i) & (own_epoch == epoch)
            within = (number[mine] - epoch * self._totals[i]).astype(np.uint64)
            found, rows[mine] = self._member_epoch(i, epoch).locate(within)
            shards[mine] = found + self._first_shards[i]
        return shards, rows

    def members_at(self, positions: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) the member of each position, and (n,) how many samples it had given before, ever."""
        blocks, which = np.unique(positions // np.uint64(self.block), return_inverse=True)
        before = self._taken(blocks)
        ends = np.cumsum(self._taken(blocks + np.uint64(1)) - before, axis=0)
        keys = derive_keys(derive_key(self.seed, self.epoch, PURPOSE_BLOCK), blocks)
        slot = permute(positions % np.uint64(self.block), self.block, keys[which])
        member = (slot.astype(np.int64) >= ends[:, which]).sum(axis=0)
        begin = np.concatenate([np.zeros((1, len(blocks)), np.int64), ends])[member, which]
        number = before[member, which] + slot.astype(np.int64) - begin
        if self.until != "endless":
            number += self.epoch * self._per_epoch[member]
        return member, number

    def seen_at(self, shard: int, row: int, first: int = 0) -> Iterator[int]:
        """The positions from `first` on at which a sample stands: its member's every epoch."""
        i = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        total, own_shard = int(self._totals[i]), np.array([shard - self._first_shards[i]])
        before = 0 if self.until == "endless" else self.epoch * int(self._per_epoch[i])
        own_epoch = (before + self._taken_by(i, first // self.block)) // total
        while True:
            within = self._member_epoch(i, own_epoch).positions_of(own_shard, np.array([row]))
            number = own_epoch * total + int(within[0]) - before
            if self.until != "endless" and number >= self._per_epoch[i]:
                return
            if number >= 0 and (position := self._position_of(i, number)) >= first:
                yield position
            own_epoch += 1

    @cached_property
    def _totals(self) -> NDArray[np.int64]:
        return np.array([int(sizes.sum()) for sizes in self.sizes], np.int64)

    @cached_property
    def _first_shards(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(sizes) for sizes in self.sizes)])

    @cached_property
    def _per_epoch(self) -> NDArray[np.int64]:
        return self._taken(np.array([self._n_blocks], np.uint64))[:, 0]

    @cached_property
    def _n_blocks(self) -> int:
        """Whole blocks of a mixture epoch: found by halving, because counts only grow."""
        low, high = 0, 1
        while not self._is_enough(high):
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_enough(middle) else (middle + 1, high)
        return low - 1 if self.until == "first" else low

    def _is_enough(self, n_blocks: int) -> bool:
        taken = self._taken(np.array([n_blocks], np.uint64))[:, 0]
        if self.until == "first":
            return bool(np.any(taken > self._totals))
        return bool(np.all(taken >= self._totals))

    @cached_property
    def _shares(self) -> tuple[NDArray[np.int64], list[int]]:
        """What each member has in every block, and the running sum of the rests, in 2**-32."""
        total = sum(self.weights)
        whole = [weight * self.block // total for weight in self.weights]
        rests = np.cumsum([weight * self.block % total for weight in self.weights], dtype=object)
        return np.array(whole, np.int64), [0, *((rest * _FULL) // total for rest in rests)]

    def _taken(self, n_blocks: U64) -> NDArray[np.int64]:
        """(n_members, n) places that each member has in the first n_blocks blocks."""
        whole, rests = self._shares
        extra = np.diff([_carried(rest, n_blocks) for rest in rests], axis=0)
        counts: NDArray[np.int64] = whole[:, None] * n_blocks.astype(np.int64) + extra
        return counts

    def _taken_by(self, i: int, n_blocks: int) -> int:
        """Places that member i has in the first n_blocks blocks."""
        return int(self._taken(np.array([n_blocks], np.uint64))[i, 0])

    def _position_of(self, i: int, number: int) -> int:
        """Where member i gives its sample `number` of this mixture epoch."""
        block, end = 0, 2
        while self._taken_by(i, end) <= number:
            block, end = end, end * _N_TRIED
        while end - block > 1:  # the last block before which member i gave at most so many
            tried = np.unique(np.linspace(block, end, _N_TRIED).astype(np.uint64))
            counts = self._taken(tried)[i]
            k = int(np.searchsorted(counts, number, side="right"))
            block, end = int(tried[k - 1]), int(tried[k])
        counts = np.diff(self._taken(np.array([block, block + 1], np.uint64)), axis=1)[:, 0]
        slot = int(counts[:i].sum()) + number - self._taken_by(i, block)
        key = derive_key(self.seed, self.epoch, PURPOSE_BLOCK, block)
        place = unpermute(np.array([slot], np.uint64), self.block, key)
        return block * self.block + int(place[0])

    def _member_epoch(self, i: int, epoch: int) -> EpochOrder:
        found = self._epochs.get((i, epoch))
        if found is None:  # another thread may clear them at any time
            if len(self._epochs) > 4 * len(self.sizes):
                self._epochs.clear()
            found = self._epochs[i, epoch] = EpochOrder(
                self.sizes[i],
                seed=derive_key(self.seed, PURPOSE_MEMBER, i),
                epoch=epoch,
                shuffle=self.shuffle,
                window=self.window,
            )
        return found


def _carried(rest: int, n_blocks: U64) -> NDArray[np.int64]:
    """The sum over t < n of floor((rest + reverse(t)) / 2**32), for every n.

    reverse(t) has the 32 bits of t in reverse order (van der Corput's sequence), so that every
    stretch of blocks has its fair share of the ones.
    """
    n = n_blocks.astype(np.int64)
    least = _FULL - rest % _FULL
    return n * (rest // _FULL) + n - _n_reversed_below(least, n)


def _n_reversed_below(limit: int, n: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many t < n have reverse(t mod 2**32) < limit: n in dyadic pieces, each counted.

    limit 2**31, n 3: the reverses of 0, 1 and 2 are 0, 2**31 and 2**30, of which 2 are below.
    """
    count = (n >> _BITS) * limit
    n = n & (_FULL - 1)
    reversed_prefix = np.zeros_like(n)
    for j in reversed(range(int(n.max(initial=0)).bit_length())):  # no higher bit is set
        has_bit = (n >> j) & 1
        step = _FULL >> j
        below = np.minimum(np.maximum(-(-(limit - reversed_prefix) // step), 0), 1 << j)
        count = count + has_bit * below
        reversed_prefix += has_bit << (_BITS - 1 - j)
    return count
