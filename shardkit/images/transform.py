"""Pictures become the arrays that CLIP-style vision towers take.

The same steps as transformers' CLIPImageProcessor (resize the shorter edge, bicubic, crop the
middle, rescale, normalise) and XTuner's `expand2square` before it, on uint8 until the last step.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardkit.images.decode import MAX_PIXELS, decode_rgb
from shardkit.images.files import padded_square

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_LARGE_STRIP = 1 << 24
"""Pixels: of a picture so much longer than wide that more would be made, only the middle is."""
_INKS = ("CMYK", "YCCK")
"""Colour spaces that Pillow turns into RGB by another rounding than simplejpeg."""

_MARKER, _SCAN, _APP1 = 0xFF, 0xDA, 0xE1
"""Of a JPEG: the byte that each marker begins with, and the second byte of two of them."""

ImageInput = bytes | memoryview | Image.Image


@dataclass(frozen=True)
class ImageTransform:
    """A CLIP-style transform. `fit`: `crop` the middle, or `pad` to a square of the mean colour.

    Equal to CLIPImageProcessor (and XTuner's padding) to the grey level before normalisation;
    safe to call from several threads.
    """

    size: int = 336
    fit: Literal["pad", "crop"] = "crop"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """(n, 3, size, size) float32 of encoded or decoded pictures. Raises BadImage."""
        out = np.empty((len(images), 3, self.size, self.size), np.float32)
        for i, image in enumerate(images):
            grey = self.uint8(image)
            for channel in range(3):
                np.take(self._levels[channel], grey[..., channel], out=out[i, channel], mode="clip")
        return out

    def uint8(self, image: ImageInput) -> NDArray[np.uint8]:
        """(size, size, 3) grey levels of one picture, before normalisation. Raises BadImage."""
        picture = image if isinstance(image, Image.Image) else fast_rgb(image)
        if self.fit == "pad":
            return np.asarray(padded_square(picture, self.size, self.background))
        return np.asarray(self._cropped(picture))

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour that `pad` fills with."""
        red, green, blue = (int(level * 255) for level in self.mean)
        return red, green, blue

    @cached_property
    def _levels(self) -> NDArray[np.float32]:
        """(3, 256) what each grey level becomes, in each channel."""
        levels = np.arange(256, dtype=np.float64) / 255
        values = [(levels - m) / s for m, s in zip(self.mean, self.std, strict=True)]
        return np.array(values, np.float32)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        """The shorter edge as `size`, then the middle.

        (Resampling only the middle, with Pillow's `box`, is faster and wrong by a grey level here
        and there: it is done for strips alone, which would take gigabytes otherwise.)
        """
        width, height = picture.size
        longer = int(self.size * max(width, height) / min(width, height))
        new = (self.size, longer) if width <= height else (longer, self.size)
        left, top = (new[0] - self.size) // 2, (new[1] - self.size) // 2
        if new[0] * new[1] > _LARGE_STRIP:
            return _middle(picture, new, self.size)
        if picture.size != new:
            picture = picture.resize(new, Image.Resampling.BICUBIC)
        return picture.crop((left, top, left + self.size, top + self.size))


def _middle(picture: Image.Image, new: tuple[int, int], size: int) -> Image.Image:
    """The middle `size` x `size` of the picture as it would be at the size `new`."""
    margin = 2 + math.ceil(2 * max(1, picture.width / new[0]))  # what a bicubic filter reaches
    spans = [_span(old, to, size, margin) for old, to in zip(picture.size, new, strict=True)]
    (x0, x1, left, right), (y0, y1, top, bottom) = spans
    near = picture.crop((x0, y0, x1, y1))  # of small numbers, as Pillow takes a box in 32 bits
    return near.resize((size, size), Image.Resampling.BICUBIC, (left, top, right, bottom))


def _span(old: int, new: int, size: int, margin: int) -> tuple[int, int, float, float]:
    """Along one edge: what to crop, and where the middle lies in it."""
    first, step = (new - size) // 2, old / new
    begin, end = first * step, (first + size) * step
    low = max(0, int(begin) - margin)
    return low, min(old, math.ceil(end) + margin), begin - low, end - low


def fast_rgb(data: bytes | memoryview) -> Image.Image:
    """What decode_rgb gives, by simplejpeg where it is installed and suits. Raises BadImage.

    Not for a JPEG that may be turned, or is CMYK or YCCK: Pillow decodes those, and what is no
    JPEG.
    """
    decoder = _simplejpeg()
    if decoder is not None and bytes(data[:3]) == b"\xff\xd8\xff" and not _may_be_turned(data):
        try:
            height, width, ink, _ = decoder.decode_jpeg_header(data)
            if ink not in _INKS and width * height <= MAX_PIXELS:
                return Image.fromarray(decoder.decode_jpeg(data, "RGB", fastdct=False))
        except (ValueError, RuntimeError):
            pass
    return decode_rgb(data)


def _may_be_turned(data: bytes | memoryview) -> bool:
    """Whether a JPEG has EXIF data, or XMP with an orientation, which Pillow takes too.

    All segments up to the first scan are looked at: profiles and thumbnails may stand before.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == _MARKER:
        kind, n_bytes = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == _SCAN:
            return False
        if kind == _APP1:
            segment = bytes(data[at + 4 : at + 2 + n_bytes])
            if segment.startswith(b"Exif\0") or b"tiff:Orientation" in segment:
                return True
        at += 1 if kind == _MARKER else 2 + n_bytes  # a marker may be filled up with more of FF
    return True  # no plain header: Pillow knows what it makes of it


@cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
