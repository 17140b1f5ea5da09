"""XTuner's own pixels: ImageTransform is within one grey level of what it feeds the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from shared import shared

from shardkit.images.transform import CLIP_MEAN, CLIP_STD, ImageTransform


@pytest.mark.parametrize("is_padded", [False, True])
def test_pixels_are_those_of_xtuner(is_padded: bool) -> None:
    """CLIPImageProcessor alone, and after expand2square: before normalisation, one level apart."""
    goldens = shared("goldens/xtuner")
    rows = json.loads((goldens / "images.json").read_text())["rows"]
    rows = [r for r in rows if r["image"] and r["pad_image_to_square"] == is_padded]
    transform = ImageTransform(336, "pad" if is_padded else "crop")
    mean, std = (np.array(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    with np.load(goldens / "images" / "pixel_values.npz") as stored:
        for row in rows:
            expected = stored[f"pad{int(is_padded)}_{row['index']}"]
            found = transform([(goldens / "images" / row["image"]).read_bytes()])[0]
            levels = [np.rint((values * std + mean) * 255) for values in (expected, found)]
            assert np.abs(levels[0] - levels[1]).max() <= 1, row["image"]
            assert np.abs(expected - found).max() <= 1.01 / 255 / min(CLIP_STD)
    assert len(rows) == 4
