"""Pixels within two grey levels of the processor's, in less time.

Grey levels are cut and resized as whole numbers, and one multiplication in float32 does what the
processor would take several for, in float64. Most families have a quicker way to cut and resize
(quick.py); for the others the processor's own code does it. What is made is compared with the
processor's own pixels of pictures that Pillow decoded: the first two pictures of every process,
and one in 1,024 (with those that are made together with them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardkit.errors import ProcessorError, UsageError
from shardkit.processors.family import Arrays
from shardkit.processors.identity import settings_of
from shardkit.processors.processor import VisionProcessor

MOST_LEVELS = 2.0
"""Grey levels, of 255, that a pixel may be off."""
FIRST_CHECKED = 2
"""Pictures that are compared at first, of those that one FastPixels makes."""
CHECKED_SHARE = 1024
"""Later one picture of so many is compared, with those of its call."""
_RAW = {"do_rescale": False, "do_normalize": False}


@dataclass
class FastPixels:
    """Makes the arrays of pictures for one processor; safe to call from several threads."""

    processor: VisionProcessor
    _n_seen: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        """Refuse a processor whose pixels are not grey levels, rescaled; raises UsageError."""
        if not self._settings.get("do_rescale"):
            raise UsageError(
                "fast_pixels with a processor that does not rescale grey levels",
                where=self.processor.name,
                expected="do_rescale: true",
                fix="Leave fast_pixels out.",
            )

    def arrays(
        self, pictures: Sequence[Image.Image], exact: Callable[[], Sequence[Image.Image]]
    ) -> list[Arrays]:
        """The model's arrays of pictures; raises ProcessorError when pixels are too different.

        `exact`: the same pictures without a fast decoder; called where they are compared.
        """
        made = self._made(pictures)
        before = self._n_seen
        self._n_seen = after = before + len(pictures)
        if before < FIRST_CHECKED or before // CHECKED_SHARE < after // CHECKED_SHARE:
            self._compare(made, self.processor.arrays(exact()))
        return made

    def _made(self, pictures: Sequence[Image.Image]) -> list[Arrays]:
        quick = self.processor.family.quick
        has_holes = any("transparency" in picture.info for picture in pictures)
        if quick is not None and not has_holes:  # processors fill transparent pixels with white
            real, arguments = self.processor.real, self.processor.arguments
            found = [quick(real, arguments, self._scale, picture) for picture in pictures]
            whole = [one for one in found if one is not None]
            if len(whole) == len(found):
                return whole
        made = self.processor.arrays(pictures, **_RAW)
        for one in made:
            one["pixel_values"] = self._scaled(one["pixel_values"])
        return made

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return settings_of(self.processor)

    @cached_property
    def _factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(3,) and (3,): a pixel is its grey level times the first, plus the second."""
        scale = float(self._settings["rescale_factor"])
        mean, std = np.zeros(3), np.ones(3)
        if self._settings.get("do_normalize"):
            mean = np.broadcast_to(np.asarray(self._settings["image_mean"], float), 3)
            std = np.broadcast_to(np.asarray(self._settings["image_std"], float), 3)
        return scale / std, -mean / std

    def _scaled(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """The pixels of grey levels (..., 3, H, W), or of patches (n, 3 * ...)."""
        by_channel = (len(raw), 3, -1) if raw.ndim == 2 else (-1, 3, *raw.shape[-2:])
        out = np.empty(raw.shape, np.float32)
        self._scale(raw.reshape(by_channel).swapaxes(0, 1), out.reshape(by_channel).swapaxes(0, 1))
        return out

    def _scale(self, grey: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Fill `out` with the pixels of grey levels (3, ...)."""
        for levels, pixels, factor, offset in zip(grey, out, *self._factors, strict=True):
            np.multiply(levels, np.float32(factor), out=pixels)
            pixels += np.float32(offset)

    def _compare(self, ours: Sequence[Arrays], theirs: Sequence[Arrays]) -> None:
        most = 0.0
        for mine, exact in zip(ours, theirs, strict=True):
            shapes = [one["pixel_values"].shape for one in (mine, exact)]
            if mine.keys() != exact.keys() or shapes[0] != shapes[1]:
                raise self._too_different(
                    f"{sorted(mine)} {shapes[0]}, {sorted(exact)} {shapes[1]}"
                )
            off = np.abs(mine["pixel_values"] - exact["pixel_values"]).max(initial=0.0)
            most = max(most, float(off / self._factors[0].min()))
        if most > MOST_LEVELS:
            raise self._too_different(f"{most:.1f} grey levels")

    def _too_different(self, found: str) -> ProcessorError:
        return ProcessorError(
            "fast_pixels makes other pixels than the processor",
            where=self.processor.name,
            expected=f"at most {MOST_LEVELS:g} grey levels of 255",
            found=found,
            fix="Leave fast_pixels out, and report the processor.",
        )
