"""From token rows of different lengths to one padded batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardkit.format.recipe import PREFERENCE, SFT
from shardkit.format.samples import IGNORE_INDEX
from shardkit.loader.options import LossWeights
from shardkit.loader.stats import Timings

Batch = dict[str, Any]
"""What a training step takes: tensors, and a few integers and lists (see `make_batch`)."""

MAX_KEPT = 24
"""Arrays of Buffers kept at most; with more in use than this, new ones are made and not kept."""
PLAIN_ROWS = 2
"""Token rows of a sample that are read: input_ids, labels."""
NO_ROWS: NDArray[np.int64] = np.zeros(0, np.int64)
Row = memoryview
"""Token rows of a sample end to end, int32, (2 * n,): input_ids, labels. A memoryview, because
it is cut up at half the cost of an array."""
Buffer = bytes | memoryview
Pixels = NDArray[np.float32] | list[NDArray[np.float32]]
"""(n_images, 3, H, W), or a list of (3, H, W) where the shapes differ."""


@dataclass(frozen=True, slots=True)
class Padding:
    """How rows are made equally long."""

    pad_token_id: int = 0
    multiple: int = 1
    """The padded length is a multiple of this."""
    loss_weights: LossWeights | None = None
    """What a label weighs in the loss; None: batches do not say."""


@dataclass(slots=True)
class RawBatch:
    """The samples of one batch before they are padded."""

    rows: Sequence[Row]
    documents: Sequence[NDArray[np.int64]] | None = None
    """The tokens of each row's documents, when rows are packs, or pairs of answers."""
    task: str = SFT
    """What the rows are for; see recipe.py."""
    flags: NDArray[np.bool_] | None = None
    """Whether each row's answer is a good one (rows of the task `kto`)."""
    n_padding_rows: int = 0
    """Rows to add whose labels are all -100, so that every rank has a batch of equal size."""
    n_made_rows: int = 0
    """Rows in `rows` that are such padding already."""
    images: Sequence[Buffer] = ()
    """Encoded, of all rows, in reading order."""
    pixel_values: Pixels | None = None
    """The images decoded; None: `images` are handed out as they are."""
    image_rows: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    """The row that each image belongs to."""
    image_documents: NDArray[np.int64] | None = None
    """A number that images of one document share, ascending; None: a row is one document."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    """What else than pixels a model wants of its images, by the model's names."""
    keys: Sequence[str] | None = None
    masked_tails: dict[int, int] = field(default_factory=dict)
    """Row → tokens at its end that are there for safety only, not to be attended to."""
    where: Callable[[int], str] | None = None
    """Where the sample of a row is, for messages."""
    timings: Timings | None = None
    """What reading the batch took; only when statistics are wanted."""

    @property
    def is_packed(self) -> bool:
        """Whether rows are packs."""
        return self.documents is not None and self.task != PREFERENCE

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(row) // PLAIN_ROWS for row in self.rows]

    def where_image(self, i: int) -> str:
        """Where image i is, for messages."""
        row = int(self.image_rows[i])
        return f"row {row} of the batch" if self.where is None else self.where(row)


class Buffers:
    """int64 arrays for one thread that makes batches.

    The system takes large blocks back when they are freed and hands out zeroed pages, which
    costs as much as filling them; so arrays are kept here. (Four arrays of 8 x 8,192 filled and
    let go: 0.9 ms of CPU with np.empty, 0.33 here; of 32 x 2,048 0.5 and 0.24. Small ones, and
    16 batches alive at once, gain nothing: 12 us and 20 of 32 x 128.)

    One is given out again only when nothing else refers to it, which is when it would have been
    freed otherwise: no tensor, array or view that anybody still holds can change.
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[np.int64]] = []

    def take(self, *shape: int) -> NDArray[np.int64]:
        """An array of this shape whose values are arbitrary."""
        n = math.prod(shape)
        free = [i for i, count in enumerate(_references(self._kept)) if count == _UNUSED]
        for i in reversed(free):  # the latest is likeliest to be in the processor's cache
            if self._kept[i].size >= n:
                return self._kept[i][:n].reshape(shape)
        for i in reversed(free):  # all too small: let go of them
            del self._kept[i]
        made = np.empty(n + n // 4, np.int64)
        if len(self._kept) < MAX_KEPT:
            self._kept.append(made)
        return made[:n].reshape(shape)


def _references(arrays: Sequence[NDArray[np.int64]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


_UNUSED = _references([np.empty(0, np.int64)])[0]
"""What _references gives for an array that only its list refers to."""


def make_batch(
    raw: RawBatch,
    padding: Padding,
    *,
    always: Sequence[str] = (),
    buffers: Buffers | None = None,
) -> Batch:
    """The padded batch of B rows and T tokens.

    `input_ids`, `labels`, `position_ids`: int64 (B, T). The label of each document's first token
    is -100, whatever is stored: no token before it is to predict it. Unpacked rows also have an
    int64 `attention_mask` (B, T); packed ones have `cu_seqlens` (int32, from 0 to B * T, the
    borders of the documents in the flattened batch) and `max_seqlen` instead, and **no** mask:
    with one, or with use_cache, transformers' models attend across the documents of a pack. The
    padding of a packed row is a document of its own. `n_padding_rows`, an int, is there when it is
    in `always`; `keys`, B strings, when `raw` has them ("" for a padding row).

    A batch with images has `pixel_values`, float32 (n_images, 3, H, W) in reading order (a list
    where shapes differ; with a processor in its shape, with the keys that go along), or `images`,
    their encoded bytes; and `image_rows`, int64 (n_images,), the row of each.

    Rows of the task `kto` have `label`, bool (B,): whether the answer is a good one. Pairs of
    answers are for `make_pairs`.

    With `padding.loss_weights` also `loss_weights`, float32 (B, T): what each label weighs.
    `token`: 1; `sample`: 1 / n, `square`: 1 / sqrt(n), n being the labels of its document that
    count; 0 where the label is -100.
    """
    n_rows = len(raw.rows) + raw.n_padding_rows
    lengths = raw.lengths
    width = -(-max([1, *lengths]) // padding.multiple) * padding.multiple
    fill = _packed if raw.is_packed else _plain
    n_planes = PLAIN_ROWS + (1 if raw.is_packed else 2)
    values = (buffers or Buffers()).take(n_planes, n_rows, width)
    batch = fill(values, raw, lengths, padding)
    if padding.loss_weights is not None:
        batch["loss_weights"] = _weights(batch, padding.loss_weights)
    if len(raw.image_rows):
        _add_images(batch, raw)
    if raw.flags is not None:
        batch["label"] = torch.zeros(n_rows, dtype=torch.bool)
        batch["label"][: len(raw.flags)] = torch.from_numpy(raw.flags)
    if raw.keys is not None:
        batch["keys"] = [*raw.keys, *[""] * (n_rows - len(raw.keys))]
    if "n_padding_rows" in always:
        batch["n_padding_rows"] = raw.n_padding_rows + raw.n_made_rows
    return batch


def _plain(values: NDArray[np.int64], raw: RawBatch, lengths: list[int], padding: Padding) -> Batch:
    _, n_rows, width = values.shape
    pads, ignored = _filler(padding.pad_token_id, width), _filler(IGNORE_INDEX, width)
    ids: list[Row] = []
    labels: list[Row] = []
    for row, n in zip(raw.rows, lengths, strict=True):
        ids += row[:n], pads[: width - n]
        labels += row[n:], ignored[: width - n]
    ids += [pads[:width]] * raw.n_padding_rows
    labels += [ignored[:width]] * raw.n_padding_rows
    tokens = np.frombuffer(b"".join(ids + labels), np.int32)  # one conversion for all rows
    values[:2] = tokens.reshape(2, n_rows, width)
    values[1, :, 0] = IGNORE_INDEX  # no token before it predicts it
    columns = np.arange(width, dtype=np.int32)
    # a row that attends to nothing would be NaN in softmax: padding rows attend to one token
    ends = np.array(lengths + [1] * raw.n_padding_rows, np.int32)
    np.less(columns, ends[:, None], out=values[2])
    for row_number, n_masked in raw.masked_tails.items():
        end = lengths[row_number]
        values[2, row_number, end - n_masked : end] = 0
    values[3] = columns
    names = ("input_ids", "labels", "attention_mask", "position_ids")
    return dict(zip(names, map(torch.from_numpy, values), strict=True))


def _filler(value: int, n: int) -> Row:
    """At least n times the same value."""
    return _fillers(value, 1 << n.bit_length())


@lru_cache(maxsize=16)
def _fillers(value: int, n: int) -> Row:
    return np.full(n, value, np.int32).data


def _packed(
    values: NDArray[np.int64], raw: RawBatch, lengths: list[int], padding: Padding
) -> Batch:
    # few kinds of calls: a batch fills the processor's cache, behind it code has to be read anew
    _, n_rows, width = values.shape
    pads, ends = padding.pad_token_id, _numbers(1 << width.bit_length())
    parts: list[NDArray[np.int64]] = []
    planes = values[:2, : len(raw.rows)].swapaxes(0, 1)
    samples = zip(planes, raw.rows, raw.documents or (), lengths, strict=True)
    for tokens, row, documents, n in samples:  # packs are nearly full: only their ends are filled
        tokens[:, :n] = np.frombuffer(row, np.int32).reshape(PLAIN_ROWS, n)
        parts.append(documents)
        if n < width:  # the padding of a row is a document, too
            tokens[0, n:] = pads
            tokens[1, n:] = IGNORE_INDEX
            parts.append(ends[width - n : width - n + 1])
    if raw.n_padding_rows:
        values[0, len(raw.rows) :], values[1, len(raw.rows) :] = pads, IGNORE_INDEX
        parts += [ends[width : width + 1]] * raw.n_padding_rows
    documents = np.concatenate(parts)
    # documents [2, 3] → borders [0, 2, 5], positions [0, 1, 2, 3, 4] - [0, 0, 2, 2, 2]
    borders = np.zeros(len(documents) + 1, np.int32)
    documents.cumsum(dtype=np.int32, out=borders[1:])
    begins = borders[:-1].repeat(documents)
    np.subtract(_small_numbers(1 << begins.size.bit_length())[: begins.size], begins, out=begins)
    values[2] = begins.reshape(n_rows, width)
    # else the last token of a document would be taught to predict the next one's first
    values[1].reshape(-1)[borders[:-1]] = IGNORE_INDEX
    names = ("input_ids", "labels", "position_ids")
    batch: Batch = dict(zip(names, map(torch.from_numpy, values), strict=True))
    batch["cu_seqlens"] = torch.from_numpy(borders)
    batch["max_seqlen"] = int(documents.max())
    return batch


def _weights(batch: Batch, how: LossWeights) -> torch.Tensor:
    """(B, T) float32: what each label weighs, by the labels of its document.

    Documents that begin at places [0, 3] of 5, labels at places 1, 2 and 4: n is [2, 1], and by
    `sample` the labels weigh [0, 1/2, 1/2, 0, 1].
    """
    labels: NDArray[np.int64] = batch["labels"].numpy()
    counts = (labels != IGNORE_INDEX).reshape(-1)
    weights = counts.astype(np.float32)
    if how != "token":
        n_rows, width = labels.shape
        begins = np.arange(0, n_rows * width, width)
        if "cu_seqlens" in batch:
            begins = batch["cu_seqlens"].numpy()[:-1].astype(np.int64)
        n = np.add.reduceat(counts, begins, dtype=np.int64)
        each = 1 / np.maximum(n, 1) ** (1.0 if how == "sample" else 0.5)
        weights *= np.repeat(each, np.diff([*begins, labels.size])).astype(np.float32)
    return torch.from_numpy(weights.reshape(labels.shape))


@lru_cache(maxsize=4)
def _numbers(n: int) -> NDArray[np.int64]:
    """0 to n - 1, made once."""
    return np.arange(n)


@lru_cache(maxsize=4)
def _small_numbers(n: int) -> NDArray[np.int32]:
    """0 to n - 1 as int32, made once."""
    return np.arange(n, dtype=np.int32)


def as_words(data: memoryview) -> memoryview:
    """Bytes as int32, up to the last whole one: what rows are cut from."""
    return data[: len(data) // 4 * 4].cast("i")


def padding_row(pad_token_id: int) -> Row:
    """The token rows, end to end, of a sample of one token that adds nothing to the loss."""
    return np.array([pad_token_id, IGNORE_INDEX], np.int32).data


def _add_images(batch: Batch, raw: RawBatch) -> None:
    batch["image_rows"] = torch.from_numpy(raw.image_rows.astype(np.int64, copy=False))
    if raw.pixel_values is None:
        batch["images"] = [bytes(image) for image in raw.images]
    elif isinstance(raw.pixel_values, np.ndarray):
        batch["pixel_values"] = torch.from_numpy(raw.pixel_values)
    else:
        batch["pixel_values"] = [torch.from_numpy(pixels) for pixels in raw.pixel_values]
    for name, array in raw.arrays.items():
        batch[name] = torch.from_numpy(np.ascontiguousarray(array))
