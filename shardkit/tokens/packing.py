"""How do samples share a row of max_length tokens?

`concat` lays all samples after each other and cuts every max_length tokens, or before an image
that would be cut or is one too many; only such packs and the last one are short, and nothing is
lost. `best-fit` never cuts a sample: the longest first, each into the fullest pack that still has
room (best-fit decreasing). Both are deterministic. Where a pack's samples begin, and which source
row they are, is kept as segments (docs/format.md, section 6.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.format.samples import IMAGE_PLACEHOLDER, SEGMENT_DTYPE, Samples, StoredImage
from shardkit.ragged import offsets, spread
from shardkit.tokens.layout import RULES, ImageSpans, Layout, Limits, Units
from shardkit.tokens.padding import lay_out, moved, with_padding


def pack(
    samples: Samples,
    *,
    rule: str,
    max_length: int | None,
    image_tokens: int = 1,
    max_images: int | None = None,
    image_placeholder: int = IMAGE_PLACEHOLDER,
    multiple: int = 1,
    pad_token_id: int = 0,
) -> Samples:
    """Samples of at most `max_length` tokens made of the given ones, with segments.

    `rule`: a name in RULES; `none` gives the samples back as they are. A placeholder counts
    `image_tokens`; a pack holds at most `max_images` images, in reading order. Samples that have
    segments already are packed segment by segment. Every document is padded with `pad_token_id`,
    label -100, to a multiple of `multiple` tokens. Raises UsageError when there is no such rule or
    length, and when a sample or an image cannot fit.
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
    limits = Limits(max_length, max_images)
    layout, pads = lay_out(rule, _units(origins, images), limits, multiple)
    written = _written(samples, origins, layout, images.first)
    return with_padding(written, pads, pad_token_id)


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where units come from; all arrays are (n,), one entry a unit."""

    start: NDArray[np.int64]
    """The unit's first token in the samples' ids."""
    lengths: NDArray[np.int64]
    sample: NDArray[np.int64]
    """The sample that the unit is, or is a part of."""
    source: NDArray[np.int64]
    record: NDArray[np.uint64]
    piece: NDArray[np.uint32]
    first: NDArray[np.int64]
    """Tokens of the source sample before the unit."""


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
    """What a rule needs to know of the units.

    Images are sorted, so those of a unit lie between two places in their list. Images at tokens
    [1, 6] of units of 4 and 5 tokens: begin [0, 1], end [1, 2]; with 4 places for each image's one
    token, extra is [0, 3, 6], and the units take [4 + 3, 5 + 3] places.
    """
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
    """The samples in the places that a layout gives them.

    Stretches in the packs [0, 0, 1]: heads [0, 2], the first stretch of each pack.
    """
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
    """Per stretch: what truncation cut from the sample that ends in it.

    Sample 0 in units 0 and 1, sample 1 in unit 2: is_last_unit is [False, True, True].
    """
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
        by = int(segments["start"][i]) - int(start[i] - samples.starts[sample[i]])
        packs[int(segments["sample"][i])] += [moved(image, by) for image in found]
    return tuple(map(tuple, packs))


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
