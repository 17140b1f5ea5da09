"""Samples: what a shard holds, as a struct of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shardkit.ragged import within

T = TypeVar("T")

IGNORE_INDEX = -100
"""The label of a token that has no loss (torch.nn.CrossEntropyLoss's ignore_index)."""

IMAGE_PLACEHOLDER = -200
"""The id that stands for one image (LLaVA's IMAGE_TOKEN_INDEX)."""

SEGMENT_DTYPE = np.dtype(
    [
        ("sample", "<u4"),
        ("start", "<u4"),
        ("length", "<u4"),
        ("source", "<u4"),
        ("record", "<u8"),
        ("first", "<u4"),
        ("n_images", "<u4"),
        ("piece", "<u4"),
        ("n_cut", "<u4"),
    ]
)
"""One row per document of a pack, or of a preference row (docs/format.md, section 6.3).

`sample`: the row in the shard that it lies in (in `Samples`: the position in the struct); `start`,
`length`: its place in that row, tokens; `source`, `record`: the input file and the row in it;
`first`: how many tokens of the source sample come before it; `n_images`: images that it refers to;
`piece`: which answer or cut of its record it is, from 0; `n_cut`: tokens that truncation removed
behind it.
"""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image as it goes into the shard."""

    name: str
    """The path as the record named it."""
    data: bytes
    extension: str
    """What the content is, not what the name says: jpg, png, webp, gif, bmp, tiff ..."""
    width: int
    height: int
    """Width and height as stored, in pixels, before any EXIF rotation."""
    tokens: int | None = None
    """Image tokens that stand for it in the row, separators not counted; None: one placeholder."""
    grid: tuple[int, ...] = ()
    """How its processor cuts it up; the meaning is the processor family's."""
    spans: tuple[tuple[int, int], ...] = ()
    """(first token in the row, tokens) of all that stands for it, separators included; two in a
    preference row, none for a placeholder."""


@dataclass(frozen=True, slots=True)
class Samples:
    """n samples in one struct of arrays.

    Of sample i: ids and labels are `ids[starts[i]:starts[i + 1]]`, `labels[...]`.
    """

    ids: NDArray[np.int32]
    """(n_tokens,) input_ids."""
    labels: NDArray[np.int32]
    """(n_tokens,) the id, or IGNORE_INDEX."""
    starts: NDArray[np.int64]
    """(n + 1,) offsets into ids, first 0, last n_tokens."""
    source: NDArray[np.uint32]
    """(n,) which source file (of a pack: that of its first segment)."""
    record: NDArray[np.uint64]
    """(n,) which row of the source file, from 0 (of a pack: that of its first segment)."""
    n_cut: NDArray[np.uint32]
    """(n,) tokens that truncation removed (of a pack: summed)."""
    images: tuple[tuple[StoredImage, ...], ...] = ()
    """Per sample; empty when no sample has one."""
    row_ids: tuple[tuple[str | None, ...], ...] = ()
    """Per sample, per segment: the record's own id; empty when nothing has one."""
    segments: NDArray[np.void] | None = field(default=None)
    """SEGMENT_DTYPE rows sorted by (sample, start); None where rows are single documents."""
    piece: NDArray[np.uint32] | None = None
    """(n,) which answer or cut of its record (of a pack: that of its first segment); None: 0."""
    flags: NDArray[np.uint32] | None = None
    """(n,) bits, see FLAG_DESIRABLE; None: 0."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each sample."""
        return np.diff(self.starts)

    def images_of(self, i: int) -> tuple[StoredImage, ...]:
        """The images of sample i, in reading order."""
        return self.images[i] if self.images else ()


def join_samples(parts: Sequence[Samples]) -> Samples:
    """Several structs as one, in order; at least one. Images count when any part has some."""
    sizes = [len(part) for part in parts]
    n_tokens = np.cumsum([0] + [len(part.ids) for part in parts])
    starts = [part.starts[:-1] + begin for part, begin in zip(parts, n_tokens[:-1], strict=True)]
    segments = None
    if parts[0].segments is not None:
        numbers = np.cumsum([0, *sizes])[:-1].astype(np.uint32)
        segments = np.concatenate([part.segments for part in parts])
        segments["sample"] += np.repeat(numbers, [len(part.segments) for part in parts])  # type: ignore[arg-type]
    return Samples(
        ids=np.concatenate([part.ids for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        starts=np.concatenate([*starts, n_tokens[-1:]]).astype(np.int64),
        source=np.concatenate([part.source for part in parts]),
        record=np.concatenate([part.record for part in parts]),
        n_cut=np.concatenate([part.n_cut for part in parts]),
        images=_joined([part.images for part in parts], sizes),
        row_ids=_joined([part.row_ids for part in parts], sizes),
        segments=segments,
        piece=_joined_numbers([part.piece for part in parts], sizes),
        flags=_joined_numbers([part.flags for part in parts], sizes),
    )


def slice_samples(samples: Samples, first: int, last: int) -> Samples:
    """Samples first to last - 1 as a struct of their own (views, segments renumbered)."""
    starts = samples.starts[first : last + 1]
    segments = None
    if samples.segments is not None:
        bounds = np.searchsorted(samples.segments["sample"], [first, last])
        segments = samples.segments[bounds[0] : bounds[1]].copy()
        segments["sample"] -= np.uint32(first)
    return Samples(
        ids=samples.ids[starts[0] : starts[-1]],
        labels=samples.labels[starts[0] : starts[-1]],
        starts=starts - starts[0],
        source=samples.source[first:last],
        record=samples.record[first:last],
        n_cut=samples.n_cut[first:last],
        images=samples.images[first:last],
        row_ids=samples.row_ids[first:last],
        segments=segments,
        piece=None if samples.piece is None else samples.piece[first:last],
        flags=None if samples.flags is None else samples.flags[first:last],
    )


def _joined_numbers(
    parts: list[NDArray[np.uint32] | None], sizes: list[int]
) -> NDArray[np.uint32] | None:
    """Numbers of samples end to end, 0 for those of a part that has none; None when no part has."""
    if all(part is None for part in parts):
        return None
    return np.concatenate(
        [
            np.zeros(size, np.uint32) if part is None else part
            for part, size in zip(parts, sizes, strict=True)
        ]
    )


def _joined(parts: list[tuple[tuple[T, ...], ...]], sizes: list[int]) -> tuple[tuple[T, ...], ...]:
    """Per-sample tuples end to end; () for the samples of a part that has none at all."""
    if not any(parts):
        return ()
    filled = (part or ((),) * size for part, size in zip(parts, sizes, strict=True))
    return tuple(one for part in filled for one in part)


def position_ids(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """(sum of documents,) positions that begin at 0 in every document. [3, 1] gives 0 1 2 0."""
    return within(documents)
