"""Encoded bytes become an upright RGB picture, whatever they were."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Pillow's decompression-bomb limit: a picture of more pixels is refused."""
MAX_EDGE = 65_535
"""JPEG's limit of an edge. What makes a square of a picture takes memory by its longer edge."""

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
_EXTENSIONS |= {"BMP": "bmp", "TIFF": "tiff"}
_JPEGS, _JPEG_MODES = ("JPEG", "MPO"), ("L", "RGB", "CMYK")
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_TIFF_SIZE = (256, 257)
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


_Found = TypeVar("_Found")


class BadImage(Exception):
    """Bytes that are no picture. `is_too_large`: one beyond MAX_PIXELS, MAX_EDGE or the memory."""

    def __init__(self, detail: str, *, is_too_large: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.is_too_large = is_too_large


@dataclass(frozen=True, slots=True)
class Measured:
    """What the bytes of a picture say of it."""

    extension: str
    width: int
    height: int
    """Width and height as stored, before EXIF rotation."""
    upright: tuple[int, int]
    """(width, height) of what `decode_rgb` gives."""


@dataclass(frozen=True, slots=True)
class Decoded(Measured):
    """A picture and what its bytes said of it."""

    rgb: Image.Image
    """Mode RGB, turned as EXIF says."""


def decode(data: bytes | memoryview) -> Decoded:
    """The picture in `data`: its first frame, RGB, upright. Raises BadImage.

    16-bit grey is scaled to 8 bits; alpha is dropped and palettes and CMYK are converted as
    Pillow's `convert("RGB")` does, which is what XTuner and transformers do.
    """
    return _opened(data, _decode)


def measure(data: bytes | memoryview) -> Measured:
    """What `decode` says of the picture beside its pixels. Raises BadImage where that does.

    All bytes are read. Of a JPEG hardly any pixels are made of them: it is decoded at an eighth of
    its size, in half the time.
    """
    return _opened(data, _measure)


def _opened(data: bytes | memoryview, read: Callable[[Image.Image], _Found]) -> _Found:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return read(image)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise BadImage(str(err), is_too_large=True) from err
    except UnidentifiedImageError as err:
        raise BadImage(f"not an image: it begins with {bytes(data[:16])!r}") from err
    except MemoryError as err:
        raise BadImage("it does not fit into memory", is_too_large=True) from err
    except Exception as err:
        raise BadImage(f"does not decode: {type(err).__name__}: {err}") from err


def decode_rgb(data: bytes | memoryview) -> Image.Image:
    """The picture in `data`: its first frame, RGB, upright. Raises BadImage."""
    return decode(data).rgb


def upright_size(data: bytes | memoryview) -> tuple[int, int]:
    """(width, height) of what `decode_rgb` gives, from the header alone. Raises BadImage."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _upright(image, _stored_size(image))
    except Exception as err:
        raise BadImage(f"does not decode: {type(err).__name__}: {err}") from err


def _measure(image: Image.Image) -> Measured:
    if image.format not in _JPEGS or image.mode not in _JPEG_MODES:
        found = _decode(image)
        return Measured(found.extension, found.width, found.height, found.upright)
    extension, width, height = _checked_header(image)
    upright = _upright(image, image.size)
    image.draft(image.mode, (1, 1))
    image.load()
    return Measured(extension, width, height, upright)


def _decode(image: Image.Image) -> Decoded:
    extension, width, height = _checked_header(image)
    image.load()
    rgb = ImageOps.exif_transpose(_to_rgb(image)) if _is_turned(image) else _to_rgb(image)
    return Decoded(extension, width, height, rgb.size, rgb)


def _checked_header(image: Image.Image) -> tuple[str, int, int]:
    """Extension, width and height; raises BadImage for one that is too large."""
    kind = image.format or ""
    width, height = _stored_size(image)
    if width * height > MAX_PIXELS or max(width, height) > MAX_EDGE:
        raise BadImage(f"{width} x {height} pixels", is_too_large=True)
    plain = "".join(c for c in kind.lower() if c.isalnum())
    return _EXTENSIONS.get(kind, plain or "bin"), width, height


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as the file has it; some Pillows give a TIFF's size after rotation."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag) for tag in _TIFF_SIZE)
    return (int(width), int(height)) if width and height else image.size


def _upright(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    return size[::-1] if image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS else size


def _is_turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(_ORIENTATION, 1) != 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy() if image.fp is not None else image  # type: ignore[attr-defined]
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):
        # rounded: levels 0, 128, 129, 257 and 65,535 → 0, 0, 1, 1 and 255
        grey = np.asarray(image).astype(np.uint32)
        eight = ((grey * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8)
        converted = Image.fromarray(eight).convert("RGB")
    else:
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            del image.info["transparency"]  # Pillow would do the same, with a warning
        converted = image.convert("RGB")
    exif = image.info.get("exif")
    if exif is not None:
        converted.info["exif"] = exif
    return converted
