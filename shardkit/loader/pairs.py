"""From rows of a chosen and a rejected answer to one padded batch, as losses of pairs take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from shardkit.format.recipe import SFT
from shardkit.format.samples import IGNORE_INDEX
from shardkit.loader.collate import (
    PLAIN_ROWS,
    Batch,
    Buffers,
    Padding,
    Pixels,
    RawBatch,
    Row,
    make_batch,
    padding_row,
)

PairLayout = Literal["apart", "stacked"]
SIDES = ("chosen", "rejected")
_OF_PICTURES = ("pixel_values", "images", "image_rows")


def make_pairs(
    raw: RawBatch,
    padding: Padding,
    *,
    layout: PairLayout = "apart",
    always: Sequence[str] = (),
    buffers: Buffers | None = None,
    finish: Callable[[Batch], None] | None = None,
) -> Batch:
    """The padded batch of B pairs.

    `apart`: `chosen_input_ids`, `chosen_attention_mask`, `chosen_labels`, `chosen_position_ids`
    and the same of `rejected_`: int64 (B, T), each side as long as its longest row. Labels are
    -100 on the prompt. Pictures are there once, for both sides. `stacked`: `input_ids`,
    `attention_mask`, `labels`, `position_ids` and `completion_mask` (1 where a label is), (2 B, T),
    all chosen rows before the rejected ones; pictures twice. What TRL's DPOTrainer takes.
    """
    pads = [padding_row(padding.pad_token_id)] * raw.n_padding_rows
    sides = [[*half, *pads] for half in _halves(raw)]
    made = {"buffers": buffers, "finish": finish}
    if layout == "stacked":
        batch = _finished(_twice(raw, [*sides[0], *sides[1]]), padding, **made)  # type: ignore[arg-type]
        batch["completion_mask"] = batch["labels"].ne(IGNORE_INDEX).long()
    else:
        batch = {}
        shared = {*_OF_PICTURES, *raw.arrays}
        for side, rows in zip(SIDES, sides, strict=True):
            own = _finished(_plain(raw, rows), padding, **made)  # type: ignore[arg-type]
            batch |= {name if name in shared else f"{side}_{name}": own[name] for name in own}
    if raw.keys is not None:
        batch["keys"] = [*raw.keys, *[""] * raw.n_padding_rows]
    if "n_padding_rows" in always:
        batch["n_padding_rows"] = raw.n_padding_rows
    return batch


def _finished(
    raw: RawBatch,
    padding: Padding,
    buffers: Buffers | None,
    finish: Callable[[Batch], None] | None,
) -> Batch:
    batch = make_batch(raw, padding, buffers=buffers)
    if finish is not None:
        finish(batch)
    return batch


def _halves(raw: RawBatch) -> tuple[list[Row], list[Row]]:
    """The token rows of the chosen answers, and of the rejected ones."""
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row, documents in zip(raw.rows, raw.documents or (), strict=True):
        n, border = len(row) // PLAIN_ROWS, int(documents[0])
        tokens = np.frombuffer(row, np.int32).reshape(PLAIN_ROWS, n)
        for side, half in zip(sides, (tokens[:, :border], tokens[:, border:]), strict=True):
            side.append(half.ravel().data)
    return sides


def _plain(raw: RawBatch, rows: list[Row]) -> RawBatch:
    """The batch with these rows in the place of the pairs."""
    return replace(raw, rows=rows, documents=None, n_padding_rows=0, keys=None, task=SFT)


def _twice(raw: RawBatch, rows: list[Row]) -> RawBatch:
    """The batch with the pictures of the pairs for each half."""
    n_pairs = len(rows) // 2
    return replace(
        _plain(raw, rows),
        images=[*raw.images, *raw.images],
        image_rows=np.concatenate([raw.image_rows, raw.image_rows + n_pairs]),
        pixel_values=_doubled(raw.pixel_values),
        arrays={name: np.concatenate([one, one]) for name, one in raw.arrays.items()},
    )


def _doubled(pixels: Pixels | None) -> Pixels | None:
    if pixels is None or isinstance(pixels, list):
        return pixels and [*pixels, *pixels]
    return np.concatenate([pixels, pixels])


def sample_of_pair(row: Row, documents: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """A pair for a training script: `chosen_input_ids`, `chosen_labels`, `rejected_...`, int64."""
    tokens = np.frombuffer(row, np.int32).reshape(PLAIN_ROWS, -1).astype(np.int64)
    halves = np.split(tokens, [int(documents[0])], axis=1)
    return {
        f"{side}_{name}": torch.from_numpy(np.ascontiguousarray(values))
        for side, half in zip(SIDES, halves, strict=True)
        for name, values in zip(_NAMES, half, strict=True)
    }


def row_of_pair(sample: Mapping[str, Any]) -> tuple[Row, NDArray[np.int64]]:
    """A sample as sample_of_pair makes it, as token rows end to end, int32 (2 * n,), and (2,) the
    tokens of its documents."""
    rows = [sample[f"{side}_{name}"].numpy() for name in _NAMES for side in SIDES]
    return np.concatenate(rows).astype(np.int32).data, np.array([len(row) for row in rows[:2]])


_NAMES = ("input_ids", "labels")


def padding_pair(pad_token_id: int) -> tuple[Row, NDArray[np.int64]]:
    """The token rows of a pair that adds nothing, and the tokens of its documents."""
    tokens = np.array([[pad_token_id] * 2, [IGNORE_INDEX] * 2], np.int32)
    return tokens.ravel().data, np.ones(2, np.int64)
