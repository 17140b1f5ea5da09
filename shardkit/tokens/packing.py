"""How do samples share a row of max_length tokens?

`concat` lays all samples after each other and cuts every max_length tokens; only the last pack is
short, and nothing is lost. `best-fit` never cuts a sample: the longest first, each into the
fullest pack that still has room (best-fit decreasing). Both are deterministic. Where a pack's
samples begin, and which source row they are, is kept as segments (docs/format.md, section 6.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.format.samples import IMAGE_PLACEHOLDER, SEGMENT_DTYPE, Samples, StoredImage
from shardkit.ragged import offsets, spread
from shardkit.tokens.best_fit import best_fit


@dataclass(frozen=True, slots=True)
class Units:
    """What a rule places: stretches of tokens in reading order (a sample, or a segment of one)."""

    lengths: NDArray[np.int64]
    """(n,) tokens of each unit."""
    places: NDArray[np.int64]
    """(n,) what each takes in the model: its tokens, its images expanded."""
    n_images: NDArray[np.int64]
    """(n,)"""
    images: ImageSpans
    """All images; their tokens count from the first token of the first unit."""


@dataclass(frozen=True, slots=True)
class ImageSpans:
    """Where images stand in a run of tokens, ascending; a rule never cuts inside one."""

    first: NDArray[np.int64]
    """(m,) the first token of each image."""
    lengths: NDArray[np.int64]
    """(m,) tokens that stand for it here."""
    places: NDArray[np.int64]
    """(m,) tokens that it takes in the model."""

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
    """Stretches of units in the order of the packs: all of them, or cut where a rule cuts."""

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
    """Raises UsageError when a unit or an image cannot fit."""
    shares_rows: bool = True
    """Whether packs are made at all; without, rows stay as they are and have no segments."""


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
    """Where the packs of a run of tokens begin, and its end."""
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
    """No unit is cut; packs in the order of their first unit, units in their own order."""
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
    "concat": PackingRule(concat),
    "best-fit": PackingRule(fit_best),
}
"""Every packing rule, by the name that `--packing` and the recipe's `packing` have for it."""


def pack(
    samples: Samples,
    *,
    rule: str,
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
    if not RULES[rule].shares_rows:
        return samples
    if max_length is None:
        raise UsageError(
            f"packing {rule} needs a length", fix="Give --max-length, or --packing none."
        )
    origins = _origins(samples)
    images = _image_spans(samples, image_placeholder, image_tokens)
    if max_length < 1 or int(images.places.max(initial=0)) > max_length:
        raise UsageError(
            "an image does not fit a pack",
            expected=f"image tokens up to {max_length}",
            found=str(int(images.places.max(initial=0))),
            fix="Give a larger --max-length.",
        )
    layout = RULES[rule].lay_out(_units(origins, images), Limits(max_length, max_images))
    return _written(samples, origins, layout, images.first)


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where units come from; all arrays have one entry a unit."""

    start: NDArray[np.int64]
    """Its first token in the samples' ids."""
    lengths: NDArray[np.int64]
    sample: NDArray[np.int64]
    """The sample it is of, or a part of."""
    source: NDArray[np.int64]
    record: NDArray[np.uint64]
    piece: NDArray[np.uint32]
    first: NDArray[np.int64]
    """Tokens of the source sample before it."""


def _origins(samples: Samples) -> _Origins:
    n = len(samples)
    if samples.segments is None:
        return _Origins(
            samples.starts[:-1],
            samples.lengths,
            np.arange(n),
            samples.source.astype(np.int64),
            samples.record,
            np.zeros(n, np.uint32) if samples.piece is None else samples.piece,
            np.zeros(n, np.int64),
        )
    segments = samples.segments
    sample = segments["sample"].astype(np.int64)
    return _Origins(
        samples.starts[sample] + segments["start"],
        segments["length"].astype(np.int64),
        sample,
        segments["source"].astype(np.int64),
        segments["record"].astype(np.uint64),
        segments["piece"].astype(np.uint32),
        segments["first"].astype(np.int64),
    )


def _image_spans(samples: Samples, placeholder: int, image_tokens: int) -> ImageSpans:
    """The images of all samples: their spans, or where they have none a placeholder each."""
    if not samples.images:
        return ImageSpans.none()
    if any(image.spans for images in samples.images for image in images):
        starts = samples.starts.tolist()
        spans = np.array(
            [
                (starts[i] + first, n)
                for i, images in enumerate(samples.images)
                for image in images
                for first, n in image.spans
            ],
            np.int64,
        )
        return ImageSpans(spans[:, 0], spans[:, 1], spans[:, 1])
    first = np.flatnonzero(samples.ids == placeholder)
    return ImageSpans(first, np.ones_like(first), np.full_like(first, image_tokens))


def _units(origins: _Origins, images: ImageSpans) -> Units:
    """What a rule needs to know of the units."""
    begin = np.searchsorted(images.first, origins.start)
    end = np.searchsorted(images.first, origins.start + origins.lengths)
    extra = offsets(images.places - images.lengths)
    return Units(
        lengths=origins.lengths,
        places=origins.lengths + extra[end] - extra[begin],
        n_images=end - begin,
        images=images,
    )


def _written(
    samples: Samples, units: _Origins, layout: Layout, places: NDArray[np.int64]
) -> Samples:
    """The samples in the places that a layout gives them."""
    start = units.start[layout.unit] + layout.skip
    ids, labels = samples.ids, samples.labels
    if not _is_in_order(start, layout.lengths, len(ids)):
        index = spread(start, layout.lengths)
        ids, labels = ids[index], labels[index]
    n_packs = int(layout.pack[-1]) + 1 if len(layout.pack) else 0
    lengths = np.bincount(layout.pack, layout.lengths, n_packs).astype(np.int64)
    starts = offsets(lengths)
    segments = _segments(units, layout, starts, start, places)
    segments["n_cut"] = _n_cut(samples, units, layout)
    heads = np.searchsorted(layout.pack, np.arange(n_packs))
    return Samples(
        ids=ids,
        labels=labels,
        starts=starts,
        source=segments["source"][heads],
        record=segments["record"][heads],
        n_cut=np.bincount(layout.pack, segments["n_cut"], n_packs).astype(np.uint32),
        images=_images(samples, segments, units.sample[layout.unit], start, places, n_packs),
        row_ids=_row_ids(samples, units.sample, layout, n_packs),
        segments=segments,
        piece=None if samples.piece is None else segments["piece"][heads],
    )


def _is_in_order(start: NDArray[np.int64], length: NDArray[np.int64], n_tokens: int) -> bool:
    if not len(start) or start[0] != 0 or start[-1] + length[-1] != n_tokens:
        return False
    return bool(np.array_equal(start[1:], (start + length)[:-1]))


def _segments(
    units: _Origins,
    layout: Layout,
    starts: NDArray[np.int64],
    start: NDArray[np.int64],
    places: NDArray[np.int64],
) -> NDArray[np.void]:
    segments = np.zeros(len(layout.unit), SEGMENT_DTYPE)
    segments["sample"] = layout.pack
    segments["start"] = offsets(layout.lengths)[:-1] - starts[layout.pack]
    segments["length"] = layout.lengths
    segments["source"] = units.source[layout.unit]
    segments["record"] = units.record[layout.unit]
    segments["piece"] = units.piece[layout.unit]
    segments["first"] = units.first[layout.unit] + layout.skip
    ends = start + layout.lengths
    segments["n_images"] = np.searchsorted(places, ends) - np.searchsorted(places, start)
    return segments


def _n_cut(samples: Samples, units: _Origins, layout: Layout) -> NDArray[np.int64]:
    """Per stretch: what truncation cut from the sample that ends in it."""
    is_last_unit = np.append(units.sample[1:] != units.sample[:-1], True)[: len(units.sample)]
    is_end = layout.skip + layout.lengths == units.lengths[layout.unit]
    is_end &= is_last_unit[layout.unit]
    cut: NDArray[np.int64] = samples.n_cut[units.sample[layout.unit]].astype(np.int64) * is_end
    return cut


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
        moved = int(segments["start"][i]) - int(start[i] - samples.starts[sample[i]])
        packs[int(segments["sample"][i])] += [_moved(image, moved) for image in found]
    return tuple(map(tuple, packs))


def _moved(image: StoredImage, by: int) -> StoredImage:
    """The image whose tokens stand `by` places further on in the row."""
    if not image.spans or not by:
        return image
    return replace(image, spans=tuple((first + by, n) for first, n in image.spans))


def _row_ids(
    samples: Samples, sample_of: NDArray[np.int64], layout: Layout, n_packs: int
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
