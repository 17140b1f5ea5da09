"""How a picture is made square, and what is stored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shardkit.conversation import Reason, Reject
from shardkit.format.samples import StoredImage
from shardkit.images.files import PAD_COLOUR, Fit, ImageStore, fitted

WIDE = Image.new("RGB", (80, 40), (255, 0, 0))
WIDE.paste((0, 0, 255), (20, 0, 60, 40))
"""A blue middle between two red ends."""


def at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """One pixel."""
    return tuple(np.asarray(image)[y, x].tolist())


@pytest.mark.parametrize("is_tall", [False, True])
def test_fits(is_tall: bool) -> None:
    """pad keeps all of it between bars, crop keeps the middle, resize squeezes; all are square."""
    picture = WIDE.transpose(Image.Transpose.TRANSPOSE) if is_tall else WIDE

    def along(fit: Fit) -> list[tuple[int, ...]]:
        """Colours at 1/8 and the middle of the longer side, and at the middle's edge."""
        out = fitted(picture, 40, fit)
        assert out.size == (40, 40)
        places = [(5, 20), (20, 20), (20, 2)]
        return [at(out, y, x) if is_tall else at(out, x, y) for x, y in places]

    red, blue = (255, 0, 0), (0, 0, 255)
    assert along("pad") == [red, blue, PAD_COLOUR]
    assert along("crop") == [blue, blue, blue]
    assert along("resize") == [red, blue, blue]


def test_original_bytes_are_kept(tmp_path: Path) -> None:
    """Without a size nothing is encoded again, and a wrong suffix does not matter."""
    WIDE.save(tmp_path / "a.jpg", "PNG")
    stored = ImageStore(tmp_path).load("a.jpg")
    assert isinstance(stored, StoredImage)
    assert stored.data == (tmp_path / "a.jpg").read_bytes()
    assert (stored.extension, stored.width, stored.height) == ("png", 80, 40)


def test_smaller_ones_are_upright_jpegs_of_that_quality(tmp_path: Path) -> None:
    """Size, type and quantisation tables are as told; EXIF rotation is done, not kept."""
    exif = Image.Exif()
    exif[0x0112] = 6
    WIDE.save(tmp_path / "a.png", exif=exif)
    stored = {q: ImageStore(tmp_path, 32, "pad", q).load("a.png") for q in (30, 95)}
    tables = []
    for quality, one in stored.items():
        assert isinstance(one, StoredImage)
        assert (one.extension, one.width, one.height) == ("jpg", 32, 32)
        with Image.open(io.BytesIO(one.data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
            assert image.getexif().get(0x0112, 1) == 1
            red, _, blue = at(image, 2, 16)  # the bar beside the upright picture
            assert abs(red - PAD_COLOUR[0]) + abs(blue - PAD_COLOUR[2]) < 20
            tables.append(image.quantization)  # type: ignore[attr-defined]
        plain = io.BytesIO()
        WIDE.save(plain, "JPEG", quality=quality)
        with Image.open(plain) as same:
            assert same.quantization == tables[-1]  # type: ignore[attr-defined]
    assert tables[0] != tables[1]


def test_what_cannot_be_stored_has_its_reason(tmp_path: Path) -> None:
    """Missing, not a picture, no root."""
    (tmp_path / "page.jpg").write_text("<html>")
    store = ImageStore(tmp_path)
    for reference, reason in [
        ("none.jpg", Reason.IMAGE_MISSING),
        ("page.jpg", Reason.IMAGE_UNREADABLE),
        ("../a.jpg", Reason.IMAGE_OUTSIDE_ROOT),
    ]:
        found = store.load(reference)
        assert isinstance(found, Reject)
        assert found.reason is reason
        assert reference in found.detail
    found = ImageStore(None).load("a.jpg")
    assert isinstance(found, Reject)
    assert "--image-root" in found.detail
