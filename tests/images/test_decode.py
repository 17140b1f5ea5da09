"""Pictures of every kind become upright RGB, or a BadImage that says why."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardkit.images import transform
from shardkit.images.decode import (
    MAX_EDGE,
    MAX_PIXELS,
    BadImage,
    decode,
    decode_rgb,
    measure,
    upright_size,
)
from shardkit.images.files import PAD_COLOUR, expand_to_square, padded_square
from shardkit.images.transform import ImageTransform, fast_rgb

WIDTH, HEIGHT = 6, 4


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The picture as a file of this kind."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes) -> list[list[tuple[int, ...]]]:
    """The decoded rows, as tuples; the fast decoder gives the same."""
    rgb = decode_rgb(data)
    assert rgb.mode == "RGB"
    assert np.array_equal(np.asarray(fast_rgb(data)), np.asarray(rgb))
    return [[tuple(p) for p in row] for row in np.asarray(rgb).tolist()]


def flat(colour: tuple[int, int, int]) -> list[list[tuple[int, ...]]]:
    """The rows of a picture of one colour."""
    return [[colour] * WIDTH] * HEIGHT


def test_cmyk() -> None:
    """Ink becomes light: no cyan ink is full red."""
    image = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    assert pixels(encoded(image, "TIFF")) == flat((255, 0, 0))
    (red, green, blue) = pixels(encoded(image, "JPEG", quality=100))[0][0]
    assert red > 250
    assert max(green, blue) < 5


def test_sixteen_bit_grey_is_scaled() -> None:
    """All of 0 to 65535 becomes all of 0 to 255; nothing is clipped at 255."""
    levels = np.array([[0, 128, 257, 32768, 65407, 65535]] * HEIGHT, np.uint16)
    row = [(v, v, v) for v in (0, 0, 1, 128, 255, 255)]
    for kind in ("PNG", "TIFF"):
        assert pixels(encoded(Image.fromarray(levels), kind)) == [row] * HEIGHT


def test_one_bit() -> None:
    """0 and 1 are black and white."""
    image = Image.new("1", (WIDTH, HEIGHT), 1)
    image.putpixel((0, 0), 0)
    found = pixels(encoded(image, "PNG"))
    assert found[0][0] == (0, 0, 0)
    assert found[0][1] == found[3][5] == (255, 255, 255)


def test_palette_with_transparency() -> None:
    """The palette's colours, transparent or not."""
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([9, 8, 7, 200, 100, 50])
    image.putpixel((2, 0), 0)
    found = pixels(encoded(image, "PNG", transparency=0))
    assert found[0][:3] == [(200, 100, 50), (200, 100, 50), (9, 8, 7)]
    assert pixels(encoded(image, "GIF", transparency=0))[0][1] == (200, 100, 50)


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_alpha_is_dropped(alpha: int) -> None:
    """The colour below stays, whatever the alpha; grey with alpha too."""
    image = Image.new("RGBA", (WIDTH, HEIGHT), (10, 200, 30, alpha))
    assert pixels(encoded(image, "PNG")) == flat((10, 200, 30))
    grey = Image.new("LA", (WIDTH, HEIGHT), (77, alpha))
    assert pixels(encoded(grey, "PNG")) == flat((77, 77, 77))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "corner"),
    list(enumerate([(0, 0), (0, 1), (1, 1), (1, 0)] * 2, start=1)),
)
def test_exif_rotation(kind: str, orientation: int, corner: tuple[int, int]) -> None:
    """The white corner, stored top left, is shown where EXIF says; sizes stay as stored."""
    image = Image.new("RGB", (48, 32))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)

    decoded = decode(data)

    assert (decoded.width, decoded.height) == (48, 32)
    assert decoded.rgb.size == ((48, 32) if orientation < 5 else (32, 48))
    shown = np.asarray(decoded.rgb)[..., 0]
    assert shown[-corner[0], -corner[1]] > 200
    assert sum(int(shown[-y, -x] > 200) for y in (0, 1) for x in (0, 1)) == 1
    assert np.array_equal(np.asarray(fast_rgb(data)), np.asarray(decoded.rgb))


@pytest.mark.parametrize("kind", ["exif", "xmp"])
def test_an_orientation_behind_other_segments_is_seen(kind: str) -> None:
    """Profiles and thumbnails may stand before EXIF; where there is none, Pillow takes XMP's."""
    image = Image.new("RGB", (48, 32))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    plain = encoded(image, "JPEG", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    body = exif.tobytes() if kind == "exif" else xmp
    before = b"".join(segment(0xE2, b"\xff\xda" + bytes(30_000)) for _ in range(2))
    data = plain[:2] + before + segment(0xE1, body) + plain[2:]
    assert np.asarray(decode_rgb(data)).shape[:2] == (48, 32)
    assert np.array_equal(np.asarray(fast_rgb(data)), np.asarray(decode_rgb(data)))


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG's header."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def test_the_type_is_that_of_the_content() -> None:
    """The extension follows the bytes, and the first frame of several is taken."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3))
    for kind, extension in [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp")]:
        assert decode(encoded(image, kind)).extension == extension
    frames = [Image.new("RGB", (WIDTH, HEIGHT), (0, 0, v)) for v in (250, 5)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert decode(data).extension == "tiff"
    assert pixels(data) == flat((0, 0, 250))


@pytest.mark.parametrize("data", [b"", b"<html>no</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_picture(data: bytes) -> None:
    """BadImage, whatever Pillow raises."""
    with pytest.raises(BadImage):
        decode(data)
    with pytest.raises(BadImage):
        fast_rgb(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_picture(kind: str) -> None:
    """Half a file is refused, never filled up with grey."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    decode(data)
    measure(data)
    for read in (decode, measure):
        for n in (len(data) // 2, len(data) * 9 // 10):
            with pytest.raises(BadImage) as caught:
                read(data[:n])
            assert not caught.value.is_too_large


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_what_is_measured_is_what_is_decoded(mode: str) -> None:
    """Type, size and verdict, of a JPEG whose bytes are changed or cut anywhere."""
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"progressive": True}, {"exif": exif}):
        whole = encoded(Image.fromarray(noise).convert(mode), "JPEG", **options)
        for at in rng.integers(2, len(whole), 25).tolist():
            changed = whole[:at] + bytes([255 - whole[at]]) + whole[at + 1 :]
            for data in (whole, changed, whole[:at]):
                assert said_of(measure, data) == said_of(decode, data)


def said_of(read: Any, data: bytes) -> tuple[object, ...]:
    """What is said of a picture's bytes, without the words of an error."""
    try:
        found = read(data)
    except BadImage as err:
        return (err.is_too_large,)
    assert getattr(found, "rgb", None) is None or found.rgb.size == found.upright
    return found.extension, found.width, found.height, found.upright


def test_a_bomb() -> None:
    """More pixels than the limit are refused from the header, before they take memory."""
    edge = int(MAX_PIXELS**0.5) + 1
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.is_too_large


@pytest.mark.parametrize("name", ["catch_warnings", "simplefilter", "filterwarnings"])
def test_decoding_does_not_touch_the_warning_filters(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They belong to the whole process: what one thread sets, another may leave set for good."""

    def trap(*_: object, **__: object) -> None:
        raise AssertionError(f"warnings.{name} was called")

    data = encoded(Image.new("P", (64, 64)), "PNG", transparency=b"\0\1")
    monkeypatch.setattr(warnings, name, trap)
    for read in (decode, measure, decode_rgb, upright_size):
        read(data)


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    """Python's warnings of the training process are as they were, after every round."""
    data, before = encoded(Image.new("P", (64, 64)), "PNG", transparency=b"\0\1"), warnings.filters
    filters = list(before)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(30):
            list(pool.map(decode, [data] * 16))
    assert list(warnings.filters) == filters


def test_an_edge_beyond_the_limit_is_refused() -> None:
    """A square of it would not fit into memory, however thin the picture is."""
    with pytest.raises(BadImage, match="pixels") as refused:
        decode(encoded(Image.new("1", (MAX_EDGE + 1, 1)), "PNG"))
    assert refused.value.is_too_large
    assert decode(encoded(Image.new("1", (MAX_EDGE, 1)), "PNG")).width == MAX_EDGE


@pytest.mark.parametrize("size", [(8300, 60), (60, 8300), (8200, 8190)])
def test_a_large_square_is_padded_without_being_made(size: tuple[int, int]) -> None:
    """The same to the grey level as the square itself, resized."""
    image = noise(size)
    square = expand_to_square(image, PAD_COLOUR).resize((48, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(padded_square(image, 48, PAD_COLOUR)), np.asarray(square))


@pytest.mark.parametrize("size", [(6500, 33), (33, 6501), (41, 5000)])
def test_the_middle_of_a_strip(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the whole strip resized, then cropped: at most one grey level off, hardly anywhere."""
    image = noise(size)
    whole = ImageTransform(96).uint8(image).astype(int)
    monkeypatch.setattr(transform, "_LARGE_STRIP", 1)
    middle = ImageTransform(96).uint8(image).astype(int)
    difference = np.abs(middle - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


STRIP = """
import io, resource
from PIL import Image
from shardkit.images.files import fitted
from shardkit.images.decode import decode_rgb
from shardkit.images.transform import ImageTransform
resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2)
file = io.BytesIO()
Image.new("L", (65535, 1)).save(file, "PNG")
for fit in ("crop", "pad"):
    ImageTransform(336, fit)([file.getvalue()])
    fitted(decode_rgb(file.getvalue()), 336, fit)
"""


def test_a_strip_of_141_bytes_does_not_take_all_memory() -> None:
    """65535 x 1 pixels, padded or cropped, for the loader and for --image-size."""
    subprocess.run([sys.executable, "-c", STRIP], check=True)


def noise(size: tuple[int, int]) -> Image.Image:
    """A picture of random pixels."""
    random = np.random.default_rng(1)
    return Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
