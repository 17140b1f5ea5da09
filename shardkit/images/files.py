"""Image references of records become stored images, or a reason to reject the row."""

from __future__ import annotations

import io
import math
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from shardkit.conversation import EmbeddedImage, ImageRef, Reason, Reject
from shardkit.format.samples import StoredImage
from shardkit.images.decode import BadImage, Decoded, Measured, decode, measure

Fit = Literal["pad", "crop", "resize"]
MAX_BYTES = 1 << 29
"""A longer file is refused unread: no picture below the pixel limit needs as much."""
_LARGE_SQUARE = 1 << 26
"""Pixels: a square above this is not made whole. (A photo of 8,000 x 6,000 is below.)"""
_BLOCK_PIXELS = 1 << 22
"""Pixels that are made at a time of a square above _LARGE_SQUARE."""
PAD_COLOUR = (122, 116, 104)
"""CLIP's mean colour as XTuner computes it: int(mean * 255) of each channel."""


@dataclass
class ImageStore:
    """Images below one folder. Nothing outside of it is ever read.

    `size`: store JPEGs of that edge instead of the original bytes: `pad` to a square of CLIP's
    mean colour, `crop` the middle of the shorter edge's square, or `resize` both edges.
    `max_pixels`: store a JPEG of at most so many pixels, in the same shape, instead of a picture
    that has more.
    """

    root: str | Path | None
    size: int | None = None
    fit: Fit = "pad"
    quality: int = 90
    max_pixels: int | None = None
    n_saved: int | None = field(default=None, init=False)
    """Bytes by which the picture that was loaded last became smaller; None: it is as it was."""
    _last: tuple[ImageRef, StoredImage | Reject] | None = field(default=None, init=False)

    def load(self, reference: ImageRef) -> StoredImage | Reject:
        """Read, decode once and, when asked, shrink the image that a record names or holds."""
        if self._last is None or self._last[0] != reference:
            self.n_saved = None
            self._last = (reference, self._load(reference))
        return self._last[1]

    @cached_property
    def _resolved_root(self) -> Path:
        return Path(self.root or ".").resolve()

    def _load(self, reference: ImageRef) -> StoredImage | Reject:
        if isinstance(reference, EmbeddedImage):
            return self._decoded(reference.name, reference.data)
        if self.root is None:
            return Reject(Reason.IMAGE_MISSING, f"{reference!r}: no --image-root was given")
        path = self._path_of(reference)
        if isinstance(path, Reject):
            return path
        data = _read(path, reference)
        return data if isinstance(data, Reject) else self._decoded(reference, data)

    def _decoded(self, name: str, data: bytes) -> StoredImage | Reject:
        try:
            return self._stored(name, data, measure(data) if self.size is None else decode(data))
        except BadImage as err:
            reason_code = Reason.IMAGE_TOO_LARGE if err.is_too_large else Reason.IMAGE_UNREADABLE
            return Reject(reason_code, f"{name!r}: {err.detail}")

    def _path_of(self, reference: str) -> Path | Reject:
        """The file, which must be below the root, also after following links."""
        outside = Reject(Reason.IMAGE_OUTSIDE_ROOT, f"{reference!r} is not below --image-root")
        if "://" in reference:
            detail = f"{reference!r}: only files are read; fetch it first"
            return Reject(Reason.IMAGE_OUTSIDE_ROOT, detail)
        relative = PurePosixPath(reference)
        parts = relative.parts
        if relative.is_absolute():
            detail = f"{reference!r}: absolute paths are refused; name it relative to --image-root"
            return Reject(Reason.IMAGE_OUTSIDE_ROOT, detail)
        if "\0" in reference or not parts or ".." in parts:
            return outside
        try:
            path = (self._resolved_root / relative).resolve()
        except (OSError, RuntimeError) as err:
            return Reject(Reason.IMAGE_MISSING, f"{reference!r}: {err}")
        return path if path.is_relative_to(self._resolved_root) else outside

    def _stored(self, reference: str, data: bytes, found: Measured) -> StoredImage:
        is_large = self.max_pixels is not None and found.width * found.height > self.max_pixels
        if self.size is None and not is_large:
            return StoredImage(reference, data, found.extension, found.width, found.height)
        rgb = (found if isinstance(found, Decoded) else decode(data)).rgb
        if self.size is not None:
            small = fitted(rgb, self.size, self.fit)
        else:
            size = size_below(rgb.size, self.max_pixels or 1)
            small = rgb.resize(size, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        small.save(out, "JPEG", quality=self.quality)
        self.n_saved = len(data) - out.tell()
        return StoredImage(reference, out.getvalue(), "jpg", *small.size)


def _read(path: Path, reference: str) -> bytes | Reject:
    """The bytes of a regular file; a pipe or a device would block, or never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Reject(Reason.IMAGE_MISSING, f"{reference!r}: not a regular file")
        if status.st_size > MAX_BYTES:
            detail = f"{reference!r}: {status.st_size:,} bytes, more than {MAX_BYTES:,}"
            return Reject(Reason.IMAGE_TOO_LARGE, detail)
        return path.read_bytes()
    except OSError as err:
        return Reject(Reason.IMAGE_MISSING, f"{reference!r}: {err.strerror or err}")


def size_below(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """(width, height) of nearly the same shape, and of at most so many pixels."""
    scale = math.sqrt(max_pixels / (size[0] * size[1]))
    width, height = (max(1, int(edge * scale)) for edge in size)
    return min(width, max(1, max_pixels // height)), min(height, max(1, max_pixels // width))


def fitted(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """The picture as a square of `size` pixels; bicubic."""
    if fit == "pad":
        return padded_square(image, size, PAD_COLOUR)
    if fit == "crop":
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def padded_square(image: Image.Image, size: int, colour: tuple[int, int, int]) -> Image.Image:
    """expand_to_square, then a bicubic resize to `size`, without a huge square in between.

    Pillow resizes rows first, each by itself, so blocks of rows give the same to the grey level.
    Of a row only the columns are resized whose kernel (two of their own widths to each side) meets
    the picture: of 1 x 65,535 pixels to 336, 10 columns of 336.
    """
    width, height = image.size
    edge = max(width, height)
    if edge * edge <= _LARGE_SQUARE:
        whole = expand_to_square(image, colour)
        return whole.resize((size, size), Image.Resampling.BICUBIC)
    left, top = (edge - width) // 2, (edge - height) // 2
    narrow = Image.new("RGB", (size, edge), colour)
    scale = edge / size
    first = max(0, math.floor(left / scale - 2.5))
    last = min(size, math.ceil((left + width) / scale + 2.5))
    start = max(0, math.floor((first - 2) * scale))
    end = min(edge, math.ceil((last + 2) * scale))
    if 2 * (end - start) > edge:  # little to gain
        first, last, start, end = 0, size, 0, edge
    n_rows = max(1, _BLOCK_PIXELS // (end - start))
    for y in range(0, height, n_rows):
        block = Image.new("RGB", (end - start, min(n_rows, height - y)), colour)
        block.paste(image.crop((0, y, width, y + block.height)), (left - start, 0))
        box = (first * scale - start, 0, last * scale - start, block.height)
        made = block.resize((last - first, block.height), Image.Resampling.BICUBIC, box)
        narrow.paste(made, (first, top + y))
    return narrow.resize((size, size), Image.Resampling.BICUBIC)


def expand_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture centred on a square of one colour (LLaVA's expand2square)."""
    width, height = image.size
    if width == height:
        return image
    edge = max(width, height)
    square = Image.new("RGB", (edge, edge), colour)
    square.paste(image, ((edge - width) // 2, (edge - height) // 2))
    return square
