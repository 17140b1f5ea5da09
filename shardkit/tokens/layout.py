"""Which stretches of which samples lie in which pack: the rules, on lengths alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.ragged import offsets
from shardkit.tokens.best_fit import best_fit


@dataclass(frozen=True, slots=True)
class Units:
    """What a rule places: stretches of tokens in reading order (a sample, or a segment of one)."""

    lengths: NDArray[np.int64]
    """(n,) tokens of each unit."""
    places: NDArray[np.int64]
    """(n,) tokens that each unit takes in the model, with its images expanded."""
    n_images: NDArray[np.int64]
    """(n,) images of each unit."""
    images: ImageSpans
    """All images; their tokens count from the first token of the first unit."""


@dataclass(frozen=True, slots=True)
class ImageSpans:
    """Where images stand in a run of tokens, ascending; a rule never cuts inside one."""

    first: NDArray[np.int64]
    """(m,) the first token of each image."""
    lengths: NDArray[np.int64]
    """(m,) tokens that stand for each image here."""
    places: NDArray[np.int64]
    """(m,) tokens that each image takes in the model."""

    @classmethod
    def none(cls) -> ImageSpans:
        """No images."""
        return cls(*(np.zeros(0, np.int64) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pack may hold."""

    max_length: int
    """Places in the model."""
    max_images: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Stretches of units in the order of the packs: whole units, or parts where a rule cuts."""

    unit: NDArray[np.int64]
    """(m,) the unit of stretch i."""
    skip: NDArray[np.int64]
    """(m,) tokens of the unit before the stretch."""
    lengths: NDArray[np.int64]
    """(m,) tokens of the stretch."""
    pack: NDArray[np.int64]
    """(m,) the pack it is in, ascending."""


@dataclass(frozen=True, slots=True)
class PackingRule:
    """How units come to lie in packs."""

    lay_out: Callable[[Units, Limits], Layout]
    """Where units lie within the limits; raises UsageError when a unit or an image cannot fit."""
    shares_rows: bool = True
    """Whether packs are made at all; without, rows stay as they are and have no segments."""
    cuts: bool = False
    """Whether a unit may be cut, so that the rule has to know where its images stand."""


def alone(units: Units, limits: Limits) -> Layout:
    """Every unit in a pack of its own."""
    numbers = np.arange(len(units.lengths))
    return Layout(numbers, np.zeros_like(numbers), units.lengths, numbers)


def concat(units: Units, limits: Limits) -> Layout:
    """All units after each other, cut at max_length but never inside an image.

    Units of 3, 4 and 1 tokens, max_length 5: packs begin at 0 and 5, units at 0, 3 and 7, so
    stretches begin at [0, 3, 5, 7]: units [0, 1, 1, 2], skip [0, 0, 2, 0], packs [0, 0, 1, 1].
    """
    n_tokens = int(units.lengths.sum())
    unit_starts = offsets(units.lengths)[:-1]
    borders = _borders(n_tokens, units.images, limits)
    begins = np.unique(np.concatenate([unit_starts[units.lengths > 0], borders[:-1]]))
    unit = np.searchsorted(unit_starts, begins, side="right") - 1
    return Layout(
        unit,
        begins - unit_starts[unit],
        np.diff(np.append(begins, n_tokens)),
        np.searchsorted(borders, begins, side="right") - 1,
    )


def _borders(n_tokens: int, images: ImageSpans, limits: Limits) -> NDArray[np.int64]:
    """Where the packs of a run of tokens begin, and its end.

    7 tokens, max_length 5: [0, 5, 7]. With an image at token 2 that takes 4 places, 6 tokens weigh
    [1, 1, 4, 1, 1, 1], in sums from 0 [0, 1, 2, 6, 7, 8, 9]: the packs begin at [0, 2, 4].
    """
    is_plain = limits.max_images is None and bool(np.all(images.places == 1))
    if is_plain:
        return np.append(np.arange(0, n_tokens, limits.max_length), n_tokens)
    weight = np.ones(n_tokens, np.int64)
    weight[images.first] += images.places - images.lengths
    total = offsets(weight)
    borders = [0]
    while borders[-1] < n_tokens:
        start = borders[-1]
        end = int(np.searchsorted(total, total[start] + limits.max_length, side="right")) - 1
        if limits.max_images is not None:
            next_image = int(np.searchsorted(images.first, start)) + limits.max_images
            if next_image < len(images.first):
                end = min(end, int(images.first[next_image]))
        before = int(np.searchsorted(images.first, end)) - 1
        if before >= 0 and end < images.first[before] + images.lengths[before]:
            end = int(images.first[before])
        if end <= start:
            raise _too_many_images(0)
        borders.append(end)
    return np.array(borders, np.int64)


def fit_best(units: Units, limits: Limits) -> Layout:
    """No unit is cut; packs in the order of their first unit, units in their own order.

    Units in bins [2, 0, 2, 1]: the bins first appear at units 1, 3 and 0, so bin 2 becomes pack 0,
    bin 0 pack 1 and bin 1 pack 2: packs of the units [0, 1, 0, 2], units in order [0, 2, 1, 3].
    """
    too_long = np.flatnonzero(units.places > limits.max_length)
    if len(too_long):
        raise UsageError(
            "a sample is longer than a pack",
            where=f"unit {int(too_long[0])}",
            expected=f"at most {limits.max_length} tokens",
            found=str(int(units.places[too_long[0]])),
            fix="Encode with the same --max-length, or pack with concat.",
        )
    most_images = int(units.n_images.max(initial=0))
    if limits.max_images is not None and most_images > limits.max_images:
        raise _too_many_images(most_images)
    bins = best_fit(units.places, limits.max_length, units.n_images, limits.max_images)
    _, first, inverse = np.unique(bins, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    pack_of = rank[inverse.reshape(-1)]
    order = np.argsort(pack_of, kind="stable")
    return Layout(order, np.zeros(len(order), np.int64), units.lengths[order], pack_of[order])


def _too_many_images(found: int) -> UsageError:
    return UsageError(
        "a pack cannot hold the images of one sample",
        found=str(found) if found else None,
        fix="Give a larger --max-images.",
    )


RULES: Mapping[str, PackingRule] = {
    "none": PackingRule(alone, shares_rows=False),
    "concat": PackingRule(concat, cuts=True),
    "best-fit": PackingRule(fit_best),
}
"""Every packing rule, by the name that `--packing` and the recipe's `packing` have for it."""
