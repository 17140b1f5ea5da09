"""How do samples share a row of max_length tokens?

`concat` lays all samples after each other and cuts every max_length tokens; only the last pack is
short, and nothing is lost. `best-fit` never cuts a sample: the longest first, each into the
fullest pack that still has room (best-fit decreasing). Both are deterministic. Where a pack's
samples begin, and which source row they are, is kept as segments (docs/format.md, section 6.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.format.samples import IMAGE_PLACEHOLDER, SEGMENT_DTYPE, Samples, StoredImage
from shardkit.ragged import offsets, spread
from shardkit.tokens.best_fit import best_fit

Packing = Literal["none", "concat", "best-fit"]


@dataclass(frozen=True, slots=True)
class _Units:
    """What packing moves: samples, or the segments of samples that are packed already.

    All arrays have one entry a unit; a unit is a stretch of the samples' tokens.
    """

    start: NDArray[np.int64]
    """In the samples' ids."""
    length: NDArray[np.int64]
    sample: NDArray[np.int64]
    """The sample it is of, or a part of."""
    source: NDArray[np.int64]
    record: NDArray[np.uint64]
    first: NDArray[np.int64]
    """Tokens of the source sample before it."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Stretches of units in the order of the packs."""

    unit: NDArray[np.int64]
    """(m,) the unit of stretch i."""
    skip: NDArray[np.int64]
    """(m,) tokens of the unit before the stretch."""
    length: NDArray[np.int64]
    """(m,)"""
    pack: NDArray[np.int64]
    """(m,) the pack it is in, ascending."""


@dataclass(frozen=True, slots=True)
class _Limits:
    max_length: int
    image_tokens: int
    max_images: int | None


def pack(
    samples: Samples,
    *,
    rule: Packing,
    max_length: int | None,
    image_tokens: int = 1,
    max_images: int | None = None,
    image_placeholder: int = IMAGE_PLACEHOLDER,
) -> Samples:
    """Samples of at most `max_length` tokens made of the given ones, with segments.

    `none` gives the samples back as they are. A placeholder counts `image_tokens`; a pack holds
    at most `max_images` images, in reading order. Samples that have segments already are packed
    segment by segment. Raises UsageError when a sample cannot fit.
    """
    if rule not in RULES:
        raise UsageError(
            "there is no such packing rule", found=rule, fix=f"Choose one of: {', '.join(RULES)}."
        )
    layout_of = RULES[rule]
    if layout_of is None:
        return samples
    if max_length is None:
        raise UsageError(
            f"packing {rule} needs a length", fix="Give --max-length, or --packing none."
        )
    limits = _Limits(max_length, image_tokens, max_images)
    places = np.empty(0, np.int64)
    if samples.images:
        places = np.flatnonzero(samples.ids == image_placeholder)
    _check_images(limits, bool(len(places)))
    units = _units_of(samples)
    return _written(samples, units, layout_of(units, places, limits), places)


def _check_images(limits: _Limits, has_images: bool) -> None:
    if limits.max_length < 1 or (has_images and limits.image_tokens > limits.max_length):
        raise UsageError(
            "an image does not fit a pack",
            expected=f"image tokens up to {limits.max_length}",
            found=str(limits.image_tokens),
            fix="Give a larger --max-length.",
        )


def _units_of(samples: Samples) -> _Units:
    n = len(samples)
    if samples.segments is None:
        return _Units(
            samples.starts[:-1],
            samples.lengths,
            np.arange(n),
            samples.source.astype(np.int64),
            samples.record,
            np.zeros(n, np.int64),
        )
    segments = samples.segments
    sample = segments["sample"].astype(np.int64)
    return _Units(
        samples.starts[sample] + segments["start"],
        segments["length"].astype(np.int64),
        sample,
        segments["source"].astype(np.int64),
        segments["record"].astype(np.uint64),
        segments["first"].astype(np.int64),
    )


def _concat(units: _Units, places: NDArray[np.int64], limits: _Limits) -> _Layout:
    """All units after each other, cut at max_length."""
    n_tokens = int(units.length.sum())
    unit_starts = offsets(units.length)[:-1]
    borders = _borders(n_tokens, places, limits)
    begins = np.unique(np.concatenate([unit_starts[units.length > 0], borders[:-1]]))
    unit = np.searchsorted(unit_starts, begins, side="right") - 1
    return _Layout(
        unit,
        begins - unit_starts[unit],
        np.diff(np.append(begins, n_tokens)),
        np.searchsorted(borders, begins, side="right") - 1,
    )


def _borders(n_tokens: int, places: NDArray[np.int64], limits: _Limits) -> NDArray[np.int64]:
    """Where the packs of a run of tokens begin, and its end; placeholders are never cut."""
    if not len(places) or (limits.image_tokens == 1 and limits.max_images is None):
        return np.append(np.arange(0, n_tokens, limits.max_length), n_tokens)
    weight = np.ones(n_tokens, np.int64)
    weight[places] = limits.image_tokens
    total = offsets(weight)
    borders = [0]
    while borders[-1] < n_tokens:
        start = borders[-1]
        end = int(np.searchsorted(total, total[start] + limits.max_length, side="right")) - 1
        if limits.max_images is not None:
            next_image = int(np.searchsorted(places, start)) + limits.max_images
            if next_image < len(places):
                end = min(end, int(places[next_image]))
        if end == start:
            raise _too_many_images(0)
        borders.append(end)
    return np.array(borders, np.int64)


def _best_fit(units: _Units, places: NDArray[np.int64], limits: _Limits) -> _Layout:
    """No unit is cut; packs in the order of their first unit, units in their own order."""
    ends = units.start + units.length
    n_images = np.searchsorted(places, ends) - np.searchsorted(places, units.start)
    sizes = units.length + n_images * (limits.image_tokens - 1)
    too_long = np.flatnonzero(sizes > limits.max_length)
    if len(too_long):
        raise UsageError(
            "a sample is longer than a pack",
            where=f"sample {int(units.sample[too_long[0]])}",
            expected=f"at most {limits.max_length} tokens",
            found=str(int(sizes[too_long[0]])),
            fix="Encode with the same --max-length, or pack with concat.",
        )
    if limits.max_images is not None and len(n_images) and n_images.max() > limits.max_images:
        raise _too_many_images(int(n_images.max()))
    bins = best_fit(sizes, limits.max_length, n_images, limits.max_images)
    _, first, inverse = np.unique(bins, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    pack_of = rank[inverse.reshape(-1)]
    order = np.argsort(pack_of, kind="stable")
    skip = np.zeros(len(order), np.int64)
    return _Layout(order, skip, units.length[order], pack_of[order])


def _too_many_images(found: int) -> UsageError:
    return UsageError(
        "a pack cannot hold the images of one sample",
        found=str(found) if found else None,
        fix="Give a larger --max-images.",
    )


RULES: Mapping[str, Callable[[_Units, NDArray[np.int64], _Limits], _Layout] | None] = {
    "none": None,
    "concat": _concat,
    "best-fit": _best_fit,
}
"""Every packing rule, by the name that the manifest stores."""


def _written(
    samples: Samples, units: _Units, layout: _Layout, places: NDArray[np.int64]
) -> Samples:
    """The samples in the places that a layout gives them."""
    start = units.start[layout.unit] + layout.skip
    ids, labels = samples.ids, samples.labels
    if not _is_in_order(start, layout.length, len(ids)):
        index = spread(start, layout.length)
        ids, labels = ids[index], labels[index]
    n_packs = int(layout.pack[-1]) + 1 if len(layout.pack) else 0
    lengths = np.bincount(layout.pack, layout.length, n_packs).astype(np.int64)
    starts = offsets(lengths)
    segments = _segments(units, layout, starts, start, places)
    heads = np.searchsorted(layout.pack, np.arange(n_packs))
    return Samples(
        ids=ids,
        labels=labels,
        starts=starts,
        source=segments["source"][heads],
        record=segments["record"][heads],
        n_cut=_n_cut(samples, units, layout, n_packs),
        images=_images(samples, segments, units.sample[layout.unit], start, places, n_packs),
        row_ids=_row_ids(samples, units.sample, layout, n_packs),
        segments=segments,
    )


def _is_in_order(start: NDArray[np.int64], length: NDArray[np.int64], n_tokens: int) -> bool:
    if not len(start) or start[0] != 0 or start[-1] + length[-1] != n_tokens:
        return False
    return bool(np.array_equal(start[1:], (start + length)[:-1]))


def _segments(
    units: _Units,
    layout: _Layout,
    starts: NDArray[np.int64],
    start: NDArray[np.int64],
    places: NDArray[np.int64],
) -> NDArray[np.void]:
    segments = np.zeros(len(layout.unit), SEGMENT_DTYPE)
    segments["sample"] = layout.pack
    segments["start"] = offsets(layout.length)[:-1] - starts[layout.pack]
    segments["length"] = layout.length
    segments["source"] = units.source[layout.unit]
    segments["record"] = units.record[layout.unit]
    segments["first"] = units.first[layout.unit] + layout.skip
    ends = start + layout.length
    segments["n_images"] = np.searchsorted(places, ends) - np.searchsorted(places, start)
    return segments


def _n_cut(samples: Samples, units: _Units, layout: _Layout, n_packs: int) -> NDArray[np.uint32]:
    """Per pack: what truncation cut from the samples that end in it."""
    is_last_unit = np.append(units.sample[1:] != units.sample[:-1], True)[: len(units.sample)]
    is_end = layout.skip + layout.length == units.length[layout.unit]
    is_end &= is_last_unit[layout.unit]
    cut = samples.n_cut[units.sample[layout.unit]] * is_end
    return np.bincount(layout.pack, cut, n_packs).astype(np.uint32)


def _images(
    samples: Samples,
    segments: NDArray[np.void],
    sample: NDArray[np.int64],
    start: NDArray[np.int64],
    places: NDArray[np.int64],
    n_packs: int,
) -> tuple[tuple[StoredImage, ...], ...]:
    """Per pack: the images whose placeholders it holds, in reading order."""
    if not samples.images:
        return ()
    packs: list[list[StoredImage]] = [[] for _ in range(n_packs)]
    before = np.searchsorted(places, start) - np.searchsorted(places, samples.starts[sample])
    for i in np.flatnonzero(segments["n_images"]).tolist():
        first, n = int(before[i]), int(segments["n_images"][i])
        found = samples.images[sample[i]][first : first + n]
        if len(found) != n:
            raise UsageError(
                "a sample has more placeholders than images",
                where=f"sample {int(sample[i])}",
                fix="Give one image per placeholder.",
            )
        packs[int(segments["sample"][i])] += found
    return tuple(map(tuple, packs))


def _row_ids(
    samples: Samples, sample_of: NDArray[np.int64], layout: _Layout, n_packs: int
) -> tuple[tuple[str | None, ...], ...]:
    """Per pack, per segment: the record's own id."""
    if not samples.row_ids:
        return ()
    packs: list[list[str | None]] = [[] for _ in range(n_packs)]
    first_unit = np.searchsorted(sample_of, np.arange(len(samples)))
    for unit, number in zip(layout.unit.tolist(), layout.pack.tolist(), strict=True):
        sample = int(sample_of[unit])
        packs[number].append(samples.row_ids[sample][unit - int(first_unit[sample])])
    return tuple(map(tuple, packs))
