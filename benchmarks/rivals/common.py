"""What every contender reads: the same samples, padded and decoded by the same code.

A rival is a module with `label`, `packages` (for their versions), and

    write(case, folder)                        store case.samples() in its own format
    batches(case, folder, n_workers, epoch)    an epoch of shuffled batches, as an iterator
    resume(case, folder, n_batches)            a function that opens an epoch behind n_batches
    items(case, folder)                        a function from a number to a sample
    lists(case, folder)                        a function from a list of numbers to samples

(`resume` or `items` is None, and `lists` left out, where the library has no such thing).

A sample is (tokens, image): its token rows, int32 arrays, and the bytes of its picture or None.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FIELDS = ("input_ids", "labels", "position_ids")
SIZE = 336
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
Sample = tuple[Sequence[NDArray[np.int32]], bytes | None]
Opener = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Case:
    """One thing that is measured: which samples, and what is made of them."""

    name: str
    data: str
    """Folder of the samples below FOLDER/flat."""
    flat: Path
    batch_size: int = 32
    is_packed: bool = False
    has_images: bool = False
    decode: bool = False
    compression: str = ""
    """`zstd` or nothing."""

    def __reduce__(self) -> Any:
        """Without the arrays, for workers that are spawned."""
        return Case, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the token rows of a sample."""
        return FIELDS if self.is_packed else FIELDS[:2]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(n + 1,) where the tokens of each sample begin."""
        found: NDArray[np.int64] = np.load(self.flat / self.data / "offsets.npy")
        return found

    @cached_property
    def image_offsets(self) -> NDArray[np.int64]:
        """(n + 1,) where the picture of each sample begins."""
        found: NDArray[np.int64] = np.load(self.flat / self.data / "image_offsets.npy")
        return found

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """All tokens, mapped."""
        return np.asarray(np.memmap(self.flat / self.data / "tokens.bin", np.int32, "r"))

    @cached_property
    def pictures(self) -> NDArray[np.uint8]:
        """All pictures, encoded, mapped."""
        return np.asarray(np.memmap(self.flat / self.data / "images.bin", np.uint8, "r"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Of all samples."""
        return int(self.offsets[-1])

    def sample(self, i: int) -> Sample:
        """Sample i."""
        n_rows = len(self.fields)
        begin, end = n_rows * int(self.offsets[i]), n_rows * int(self.offsets[i + 1])
        rows = self.tokens[begin:end].reshape(n_rows, -1)
        if not self.has_images:
            return rows, None
        first, last = int(self.image_offsets[i]), int(self.image_offsets[i + 1])
        return rows, self.pictures[first:last].tobytes()

    def columns(self, i: int) -> dict[str, Any]:
        """Sample i by name, for formats that have columns."""
        rows, image = self.sample(i)
        found: dict[str, Any] = dict(zip(self.fields, rows, strict=True))
        return found if image is None else {**found, "image": image}

    def from_columns(self, row: dict[str, Any]) -> Sample:
        """The opposite of columns()."""
        return [row[name] for name in self.fields], row.get("image")

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch: int64 tensors padded on the right, and the pictures."""
        lengths = [len(rows[0]) for rows, _ in samples]
        width = max(lengths)
        values = np.zeros((len(self.fields), len(samples), width), np.int64)
        values[1] = -100
        mask = np.zeros((len(samples), width), np.int64)
        for i, (rows, _) in enumerate(samples):
            if isinstance(rows, np.ndarray):
                values[:, i, : lengths[i]] = rows
            else:
                for k, row in enumerate(rows):
                    values[k, i, : lengths[i]] = row
            mask[i, : lengths[i]] = 1
        batch: dict[str, Any] = dict(zip(self.fields, map(torch.from_numpy, values), strict=True))
        if not self.is_packed:
            batch["attention_mask"] = torch.from_numpy(mask)
        images = [bytes(image) for _, image in samples if image is not None]
        if self.decode:
            batch["pixel_values"] = torch.from_numpy(np.stack([pixels(each) for each in images]))
        elif self.has_images:
            batch["images"] = images
        return batch

    def collate_columns(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """collate() of rows by name."""
        return self.collate([self.from_columns(row) for row in rows])


def pixels(data: bytes) -> NDArray[np.float32]:
    """(3, SIZE, SIZE) float32 as CLIP takes it: Pillow, shorter edge, bicubic, the middle."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    width, height = (max(SIZE, int(SIZE * edge / short)) for edge in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    grey = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
    scaled = (grey.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def after(n: int, batches: Iterator[Any]) -> Iterator[Any]:
    """The iterator when n batches have been taken from it."""
    for _ in range(n):
        next(batches)
    return batches
