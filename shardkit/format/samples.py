"""Samples: what a shard holds, as a struct of arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
    ]
)
"""One row per segment of packed data (docs/format.md, section 6.3).

`sample`: its row in the shard (in `Samples`: the position in the struct); `start`, `length`:
its place in the pack, tokens; `first`: how many tokens of the source sample come before it.
"""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image as it goes into the shard."""

    name: str
    """The path as the record named it."""
    data: bytes
    extension: str
    """Of the content, not of the name: jpg, png, webp, gif, bmp, tiff ..."""
    width: int
    height: int
    """As stored, pixels, before any EXIF rotation."""


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
    """(n,) which row of it, from 0 (of a pack: that of its first segment)."""
    n_cut: NDArray[np.uint32]
    """(n,) tokens that truncation removed (of a pack: summed)."""
    images: tuple[tuple[StoredImage, ...], ...] = ()
    """Per sample; empty when no sample has one."""
    row_ids: tuple[tuple[str | None, ...], ...] = ()
    """Per sample, per segment: the record's own id; empty when nothing has one."""
    segments: NDArray[np.void] | None = field(default=None)
    """SEGMENT_DTYPE rows sorted by (sample, start); None when not packed."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each sample."""
        return np.diff(self.starts)

    def images_of(self, i: int) -> tuple[StoredImage, ...]:
        """The images of sample i, in reading order."""
        return self.images[i] if self.images else ()
