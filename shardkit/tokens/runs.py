"""How do pieces of ids become samples, without a loop over tokens?

A run is a stretch of ids in a pool that has one label rule: all in the loss, or none. A row is a
list of runs. Truncation, counting and the final gather are NumPy over all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.format.samples import IGNORE_INDEX, Samples
from shardkit.tokens.engines import starts_of


@dataclass(frozen=True, slots=True)
class Runs:
    """m runs in n rows, as a struct of arrays."""

    pool: NDArray[np.int32]
    """Ids that runs point into."""
    source: NDArray[np.int64]
    """(m,) first id of the run in the pool."""
    length: NDArray[np.int64]
    """(m,)"""
    supervised: NDArray[np.bool_]
    """(m,) in the loss."""
    is_image: NDArray[np.bool_]
    """(m,) one image placeholder."""
    rows: NDArray[np.int64]
    """(n + 1,) the runs of row i are rows[i]:rows[i + 1]."""


@dataclass(frozen=True, slots=True)
class Built:
    """Samples from runs: those rows that kept a supervised token."""

    samples: Samples
    kept: NDArray[np.int64]
    """Rows, ascending."""
    n_images: NDArray[np.int64]
    """Per kept row: images whose placeholder is still there (the first ones)."""
    n_images_cut: NDArray[np.int64]
    """Per kept row: images whose placeholder was cut off."""


def build(runs: Runs, *, max_length: int | None, image_tokens: int) -> Built:
    """Cut every row to its head, drop the rows without a supervised token, gather the rest.

    A placeholder counts `image_tokens` towards `max_length` and is kept whole or not at all;
    nothing after it is kept when it is not.
    """
    n_rows = len(runs.rows) - 1
    row = np.repeat(np.arange(n_rows), np.diff(runs.rows))
    length = runs.length
    if max_length is not None:
        length = _cut(runs, row, max_length, image_tokens)
    n_tokens = _sum_by_row(row, length, n_rows)
    n_before = _sum_by_row(row, runs.length, n_rows)
    n_supervised = _sum_by_row(row, length * runs.supervised, n_rows)
    kept = np.flatnonzero(n_supervised > 0)
    length = length * (n_supervised > 0)[row]
    images = _sum_by_row(row, (length > 0) & runs.is_image, n_rows)
    images_before = _sum_by_row(row, runs.is_image, n_rows)
    ids, labels = _gather(runs, length)
    samples = Samples(
        ids=ids,
        labels=labels,
        starts=starts_of(n_tokens[kept]),
        source=np.zeros(len(kept), np.uint32),
        record=np.zeros(len(kept), np.uint64),
        n_cut=(n_before - n_tokens)[kept].astype(np.uint32),
    )
    return Built(samples, kept, images[kept], (images_before - images)[kept])


def why_without_loss(runs: Runs, row: int, max_length: int | None, image_tokens: int) -> str:
    """What to say of a row that `build` drops: it never had a label, or the cut took them all."""
    part = slice(runs.rows[row], runs.rows[row + 1])
    n_tokens = int(np.where(runs.is_image[part], image_tokens, runs.length[part]).sum())
    n_supervised = int(runs.length[part][runs.supervised[part]].sum())
    if not n_supervised:
        return f"{n_tokens} tokens, none of an answer"
    return f"{n_tokens} tokens, all {n_supervised} of answers beyond max length {max_length}"


def _cut(
    runs: Runs, row: NDArray[np.int64], max_length: int, image_tokens: int
) -> NDArray[np.int64]:
    """The length that truncation leaves of each run."""
    weight = np.where(runs.is_image, image_tokens, runs.length)
    before = np.cumsum(weight) - weight
    is_first = runs.rows[:-1][np.diff(runs.rows) > 0]
    begin = np.zeros(len(runs.rows) - 1, np.int64)
    begin[np.diff(runs.rows) > 0] = before[is_first]
    room = max_length - (before - begin[row])
    left = np.clip(room, 0, runs.length)
    return np.where(runs.is_image, room >= image_tokens, left)


def _sum_by_row(
    row: NDArray[np.int64], values: NDArray[np.int64] | NDArray[np.bool_], n_rows: int
) -> NDArray[np.int64]:
    return np.bincount(row, weights=values, minlength=n_rows).astype(np.int64)


def _gather(runs: Runs, length: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(ids, labels) of all runs after each other."""
    place = np.cumsum(length) - length
    index = np.repeat(runs.source - place, length)
    index += np.arange(len(index))
    ids = runs.pool[index]
    labels = np.where(np.repeat(runs.supervised, length), ids, np.int32(IGNORE_INDEX))
    return ids, labels
