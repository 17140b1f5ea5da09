"""The epoch as one sequence, and who reads which part of it (docs/format.md, 8.3 and 8.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardkit.order.permute import U64, derive_key, derive_keys, permute, unpermute

Shuffle = Literal["full", "window", "none"]

DEFAULT_WINDOW = 4096
"""Consecutive samples of a lane among which `window` shuffles."""
PURPOSE_SHARDS = 1
PURPOSE_LANE = 2


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch: a function of these values alone, on every machine.

    `sizes`: (n_shards,) samples of each shard. `lanes` (L) and `chunk` (u) shape the sequence:
    chunk c of u samples comes from lane c mod L. With shuffle "none" L is taken as 1.
    """

    sizes: NDArray[np.int64]
    seed: int
    epoch: int
    lanes: int = 1
    chunk: int = 1
    shuffle: Shuffle = "full"
    window: int = DEFAULT_WINDOW

    @cached_property
    def n_samples(self) -> int:
        """N: samples of the whole epoch."""
        return int(self.sizes.sum(dtype=np.int64))

    @cached_property
    def n_lanes(self) -> int:
        """L as the sequence uses it: 1 with shuffle "none"."""
        return 1 if self.shuffle == "none" else self.lanes

    def locate(self, positions: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) shard and (n,) row in it, int64, of each position of the sequence, all below N."""
        lane, place = self._lane_of(positions.astype(np.uint64))
        place = self._shuffled(lane, place, permute)
        run = (self._lane_start(lane) + place).astype(np.int64)
        at = np.searchsorted(self._run_ends, run, side="right")
        return self._shard_order[at], run - (self._run_ends[at] - self._run_sizes[at])

    def positions_of(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> U64:
        """(n,) the position of each sample: the inverse of `locate`."""
        at = self._shard_rank[shards]
        run = (self._run_ends[at] - self._run_sizes[at] + rows).astype(np.uint64)
        lane, place = _deal(run, self._base, self._n_longer)
        place = self._shuffled(lane, place, unpermute)
        return self._position_of(lane, place)

    def seen_at(self, shard: int, row: int, first: int = 0) -> Iterator[int]:
        """The one position of a sample, when it is not before `first`."""
        position = int(self.positions_of(np.array([shard]), np.array([row]))[0])
        if position >= first:
            yield position

    def shards_of_lane(self, lane: int) -> NDArray[np.int64]:
        """The shards that lane `lane` touches, in the order in which it holds them."""
        bounds = self._lane_start(np.array([lane, lane + 1], np.uint64)).astype(np.int64)
        first = int(np.searchsorted(self._run_ends, bounds[0], side="right"))
        last = int(np.searchsorted(self._run_ends, bounds[1], side="left")) + 1
        touched = slice(first, last if bounds[1] > bounds[0] else first)
        return self._shard_order[touched][self._run_sizes[touched] > 0]

    @cached_property
    def _base(self) -> int:
        return self.n_samples // self.n_lanes

    @cached_property
    def _n_longer(self) -> int:
        """How many lanes, the first ones, hold one sample more than the others."""
        return self.n_samples % self.n_lanes

    @cached_property
    def _shard_order(self) -> NDArray[np.int64]:
        """(n_shards,) the shards in the order of the run."""
        n = len(self.sizes)
        if self.shuffle == "none":
            return np.arange(n)
        key = derive_key(self.seed, self.epoch, PURPOSE_SHARDS)
        return permute(np.arange(n, dtype=np.uint64), n, key).astype(np.int64)

    @cached_property
    def _shard_rank(self) -> NDArray[np.int64]:
        rank = np.empty(len(self.sizes), np.int64)
        rank[self._shard_order] = np.arange(len(self.sizes))
        return rank

    @cached_property
    def _run_sizes(self) -> NDArray[np.int64]:
        return self.sizes[self._shard_order]

    @cached_property
    def _run_ends(self) -> NDArray[np.int64]:
        return np.cumsum(self._run_sizes)

    def _lane_start(self, lane: U64) -> U64:
        return lane * np.uint64(self._base) + np.minimum(lane, np.uint64(self._n_longer))

    def _lane_of(self, positions: U64) -> tuple[U64, U64]:
        """The (lane, place in it) of each position: chunks in turn, then what is left."""
        n_lanes, chunk = np.uint64(self.n_lanes), np.uint64(self.chunk)
        rounds = self._base // self.chunk
        n_turns = np.uint64(rounds * self.chunk * self.n_lanes)
        number = positions // chunk
        lane = number % n_lanes
        place = (number // n_lanes) * chunk + positions % chunk
        tail = positions >= n_turns
        if tail.any():
            left = self._base - rounds * self.chunk
            lane[tail], rest = _deal(positions[tail] - n_turns, left, self._n_longer)
            place[tail] = np.uint64(rounds * self.chunk) + rest
        return lane, place

    def _position_of(self, lane: U64, place: U64) -> U64:
        chunk = np.uint64(self.chunk)
        rounds = np.uint64(self._base // self.chunk)
        turns = rounds * chunk
        in_turn = ((place // chunk) * np.uint64(self.n_lanes) + lane) * chunk + place % chunk
        before = lane * (np.uint64(self._base) - turns)
        before += np.minimum(lane, np.uint64(self._n_longer))
        in_tail = turns * np.uint64(self.n_lanes) + before + (place - turns)
        positions: U64 = np.where(place < turns, in_turn, in_tail)
        return positions

    def _shuffled(self, lane: U64, place: U64, how: object) -> U64:
        if self.shuffle == "none" or not len(place):
            return place
        move = permute if how is permute else unpermute
        size = np.uint64(self._base) + (lane < np.uint64(self._n_longer)).astype(np.uint64)
        keys = derive_keys(derive_key(self.seed, self.epoch, PURPOSE_LANE), lane)
        if self.shuffle == "full":
            return move(place, size, keys)
        window = np.uint64(self.window)
        begin = (place // window) * window
        keys = _derive_each(keys, place // window)
        return begin + move(place - begin, np.minimum(window, size - begin), keys)


def _deal(index: U64, size: int, n_longer: int) -> tuple[U64, U64]:
    """Which of many runs, laid end to end, holds each index, and where in it.

    The first `n_longer` runs have size + 1 elements, the others `size`. Of size 2, one longer:
    index [0, 2, 3, 4, 5] → runs [0, 0, 1, 1, 2], places [0, 2, 0, 1, 0].
    """
    longer, border = np.uint64(size + 1), np.uint64(n_longer * (size + 1))
    beyond = index - np.minimum(border, index)
    is_longer = index < border
    run: U64 = np.where(
        is_longer, index // longer, np.uint64(n_longer) + beyond // np.uint64(size or 1)
    )
    place: U64 = np.where(is_longer, index % longer, beyond % np.uint64(size or 1))
    return run, place


def _derive_each(keys: U64, parts: U64) -> U64:
    """derive_key with one more part, each element from its own key."""
    return derive_keys(0, keys ^ parts)


def n_steps(n_samples: int, *, batch_size: int, world_size: int, drop_last: bool) -> int:
    """Batches of every rank in an epoch: the last, partial global batch is dropped or padded."""
    per_step = batch_size * world_size
    return n_samples // per_step if drop_last else -(-n_samples // per_step)


def batch_positions(
    first_step: int, n: int, *, batch_size: int, rank: int, world_size: int, origin: int = 0
) -> U64:
    """(n, batch_size) positions of the batches of `rank` from step `first_step` on.

    Step g begins at position `origin + g * batch_size * world_size`. Positions at or beyond
    N are padding.
    """
    step = np.arange(first_step, first_step + n, dtype=np.uint64)[:, None]
    within = np.arange(rank * batch_size, (rank + 1) * batch_size, dtype=np.uint64)
    return np.uint64(origin) + step * np.uint64(world_size * batch_size) + within
