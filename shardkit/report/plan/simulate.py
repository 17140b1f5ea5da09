"""The steps of an epoch one by one, as ShardLoader would make them, from columns of the rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.order.balanced import BalancedOrder
from shardkit.order.by_length import GroupedOrder, Order, group_size
from shardkit.order.cost import Weights
from shardkit.report.plan.rows import Ints, Rows

_AT_ONCE = 1 << 16
"""Positions that are looked up together."""


@dataclass(frozen=True)
class Steps:
    """Which rows n steps hold, on R ranks with B rows in a batch."""

    at: Ints
    """(n, R, B) where in the columns each row is; -1 for padding."""
    shards: Ints
    """(n, R, B) the shard of each row; -1 for padding."""

    @property
    def is_row(self) -> NDArray[np.bool_]:
        """(n, R, B) whether a place holds a row, not padding."""
        found: NDArray[np.bool_] = self.at >= 0
        return found

    def column(self, rows: Rows, name: str) -> Ints:
        """(n, R, B) a field of each row; 0 for padding."""
        values = rows.columns[name]
        if not len(values):
            return np.zeros(self.at.shape, np.int64)
        found: Ints = np.where(self.is_row, values[np.maximum(self.at, 0)].astype(np.int64), 0)
        return found


def chosen_steps(n_steps: int, step: int, n_samples: int | None, max_rows: int) -> Ints:
    """The steps that are looked at: all, or whole groups of them, evenly spread.

    `step`: rows of a global batch. Of 12 steps in groups of 4, 8 are to be looked at: groups
    [0, 2], steps 0 to 3 and 8 to 11.
    """
    most = max(1, max_rows // step)
    if n_steps <= most:
        return np.arange(n_steps)
    in_group = group_size(n_samples, step) // step
    groups = np.unique(np.linspace(0, n_steps // in_group - 1, max(1, most // in_group)))
    first = groups.astype(np.int64)[:, None] * in_group
    return np.unique(np.minimum((first + np.arange(in_group)).reshape(-1), n_steps - 1))


def look(order: Order, rows: Rows, steps: Ints, ranks: int, batch: int) -> Steps:
    """The rows that steps hold, by their numbers in the epoch: (n,)."""
    step = ranks * batch
    shape = (len(steps), ranks, batch)
    at, shards = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    for part in _parts(len(steps), step, getattr(order, "group", step)):
        positions = (steps[part, None] * step + np.arange(step)).reshape(-1).astype(np.uint64)
        is_row = np.ones(len(positions), np.bool_)
        if order.n_samples is not None:
            is_row = positions < np.uint64(order.n_samples)
        found, own = order.locate(positions[is_row])
        at[part].reshape(-1)[is_row] = rows.at(found, own)
        shards[part].reshape(-1)[is_row] = found
    return Steps(at, shards)


def _parts(n: int, step: int, group: int) -> Iterator[slice]:
    """Steps in runs of whole groups, so that a group is laid out once."""
    n_each = max(1, group // step) * max(1, _AT_ONCE // max(group, step))
    for begin in range(0, n, n_each):
        yield slice(begin, min(n, begin + n_each))


def widths_of(lengths: Ints, multiple: int) -> Ints:
    """(n, R) places of a row of each batch: its longest row, rounded up; 1 at least."""
    longest = np.maximum(1, lengths.max(axis=2, initial=0))
    found: Ints = -(-longest // multiple) * multiple
    return found


def straggler(steps: Steps, rows: Rows, weights: Weights, accumulation: int) -> float:
    """Cost of the dearest rank over the mean, summed over the times that ranks wait."""
    token, square, image = weights
    cost = steps.column(rows, "length").sum(axis=2, dtype=np.float64) * token
    cost += steps.column(rows, "cost2").astype(np.float64).sum(axis=2) * square
    cost += steps.column(rows, "n_image_tokens").sum(axis=2, dtype=np.float64) * image
    n = len(cost) // accumulation * accumulation
    cost = cost[:n].reshape(-1, accumulation, cost.shape[1]).sum(axis=1)
    mean = float(cost.mean(axis=1).sum())
    return float(cost.max(axis=1).sum()) / mean if mean else 1.0


def first_batch(order: Order, batch: int) -> tuple[int, float]:
    """Shards that rank 0 needs to know its first batch, and seconds that finding it took.

    A group that is sorted or laid out is known whole, or its lane, before any row of it.
    """
    began = time.perf_counter()
    order.locate(np.arange(_known(order, batch), dtype=np.uint64))
    took = time.perf_counter() - began
    return len(np.unique(_plain(order).locate(_needed(order, batch))[0])), took


def _known(order: Order, batch: int) -> int:
    return batch if order.n_samples is None else min(batch, order.n_samples)


def _plain(order: Order) -> Order:
    return order.order if isinstance(order, BalancedOrder | GroupedOrder) else order


def _needed(order: Order, batch: int) -> NDArray[np.uint64]:
    """The positions of the epoch whose index rows decide what the first batch of rank 0 is."""
    first = np.arange(_known(order, batch), dtype=np.uint64)
    if not isinstance(order, BalancedOrder | GroupedOrder):
        return first
    n = order.group if order.n_samples is None else min(order.group, order.n_samples)
    every = np.arange(n, dtype=np.uint64)
    if isinstance(order, BalancedOrder) and order.balance.scope != "lanes":
        return every
    kinds = every // np.uint64(order.chunk) % np.uint64(order.lanes)
    return every[np.isin(kinds, kinds[: len(first)])]
