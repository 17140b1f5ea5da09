"""Documents of a pack padded to a multiple, each by itself: what context parallelism cuts evenly.

A rank of a context-parallel group takes 1 / (2 * CP) of every document, twice; so the documents
of a pack have lengths that 2 * CP divides, and their padding lies behind each of them, with the
label -100. A rule lays the padded lengths out; then tokens are put in.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.format.samples import IGNORE_INDEX, Samples, StoredImage
from shardkit.ragged import offsets, spread
from shardkit.tokens.layout import RULES, Layout, Limits, Units


def lay_out(
    rule: str, units: Units, limits: Limits, multiple: int
) -> tuple[Layout, NDArray[np.int64]]:
    """Where units lie in packs, and the padding tokens behind each stretch.

    Lengths of 5 and 3, multiple 4, packs of 16: stretches of 5 and 3, padded by 3 and 1. Raises
    UsageError where a rule would cut between the tokens of a multiple, and what the rule raises.
    """
    if multiple == 1:
        layout = RULES[rule].lay_out(units, limits)
        return layout, np.zeros_like(layout.lengths)
    check_multiple(multiple, limits.max_length)
    if RULES[rule].cuts and len(units.images.first):
        raise UsageError(
            f"{rule} ends a pack before a picture that does not fit, wherever that is",
            found=f"documents padded to a multiple of {multiple}",
            fix="Use --packing best-fit.",
        )
    extra = -units.places % multiple
    padded = replace(units, lengths=units.lengths + extra, places=units.places + extra)
    layout = RULES[rule].lay_out(padded, limits)
    there = np.clip(units.lengths[layout.unit] - layout.skip, 0, layout.lengths)
    return replace(layout, lengths=there), layout.lengths - there


def check_multiple(multiple: int, max_length: int) -> None:
    """Raise UsageError where packs of max_length would not hold whole multiples."""
    if max_length % multiple:
        raise UsageError(
            "padded documents do not fill a pack evenly",
            where="--pad-documents-to-multiple",
            expected=f"a multiple of {multiple} as --max-length",
            found=str(max_length),
            fix=f"Give --max-length {max(1, max_length // multiple) * multiple}.",
        )


def with_padding(samples: Samples, pads: NDArray[np.int64], pad_token_id: int) -> Samples:
    """The packs with padding behind their segments; `pads`: (m,) tokens of it, one entry a segment.

    Segments of [5, 3] tokens, pads [3, 1]: they begin at [0, 8] then, and are [8, 4] long.
    """
    if samples.segments is None or not pads.any():
        return samples
    segments = samples.segments.copy()
    before = segments["length"].astype(np.int64)
    lengths = before + pads
    begins = offsets(lengths)
    there = spread(begins[:-1], before)
    ids = np.full(begins[-1], pad_token_id, np.int32)
    labels = np.full(begins[-1], IGNORE_INDEX, np.int32)
    ids[there], labels[there] = samples.ids, samples.labels
    sample = segments["sample"].astype(np.int64)
    sizes = np.bincount(sample, lengths, len(samples)).astype(np.int64)
    starts = offsets(sizes)
    start = begins[:-1] - starts[sample]
    by = start - segments["start"].astype(np.int64)
    segments["start"], segments["length"] = start, lengths
    images = _moved_images(samples, by) if samples.images else ()
    return replace(samples, ids=ids, labels=labels, starts=starts, segments=segments, images=images)


def _moved_images(samples: Samples, by: NDArray[np.int64]) -> tuple[tuple[StoredImage, ...], ...]:
    """The images of each pack where their segments went."""
    if samples.segments is None:
        return samples.images
    found: list[tuple[StoredImage, ...]] = []
    firsts = np.searchsorted(samples.segments["sample"], np.arange(len(samples) + 1))
    for i, images in enumerate(samples.images):
        part = slice(int(firsts[i]), int(firsts[i + 1]))
        owner = np.repeat(by[part], samples.segments["n_images"][part]).tolist()
        found.append(tuple(moved(image, n) for image, n in zip(images, owner, strict=True)))
    return tuple(found)


def moved(image: StoredImage, by: int) -> StoredImage:
    """The image whose tokens stand `by` places further on in the row."""
    if not image.spans or not by:
        return image
    return replace(image, spans=tuple((first + by, n) for first, n in image.spans))
