"""How do the arrays of several pictures become those of a batch?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.processors.family import Arrays, Place


def joined(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """All pictures after each other, key by key."""
    if len(arrays) == 1:
        return dict(arrays[0])
    return {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}


def joined_padded(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """Arrays joined, with zeros after the pictures that have fewer tiles, or fewer pixels."""
    return {name: _padded([one[name] for one in arrays]) for name in arrays[0]}


def joined_by_document(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """LLaVA-OneVision's: padded tiles, and how many pictures each document has."""
    named = [{k: v for k, v in one.items() if k != "batch_num_images"} for one in arrays]
    batch = joined_padded(named, place)
    batch["batch_num_images"] = np.unique(place.documents, return_counts=True)[1].astype(np.int64)
    return batch


def joined_by_row(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """Idefics3's: the tiles of a row of the batch in one row, zeros after them."""
    n_tiles = np.array([one["pixel_values"].shape[1] for one in arrays])
    in_row = np.bincount(place.rows, n_tiles, place.n_rows).astype(np.int64)
    batch: Arrays = {}
    for name in ("pixel_values", "pixel_attention_mask"):
        shapes = np.array([one[name].shape[2:] for one in arrays])
        like = arrays[0][name]
        values = np.zeros((place.n_rows, int(in_row.max()), *shapes.max(axis=0)), like.dtype)
        filled = np.zeros(place.n_rows, np.int64)
        for one, row in zip(arrays, place.rows.tolist(), strict=True):
            tiles = one[name][0]
            at = filled[row]
            region = (row, slice(at, at + len(tiles)), *map(slice, tiles.shape[1:]))
            values[region] = tiles
            filled[row] += len(tiles)
        batch[name] = values
    return batch


def _padded(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenated along the first axis, the others padded with zeros at their ends."""
    if len(arrays) == 1:
        return arrays[0]
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    values = np.zeros((sum(map(len, arrays)), *shape), arrays[0].dtype)
    at = 0
    for array in arrays:
        values[(slice(at, at + len(array)), *map(slice, array.shape[1:]))] = array
        at += len(array)
    return values
