"""The index of a shard: what every sample is, found without reading it (docs/format.md, 6.2)."""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.format.layout import INDEX_DTYPE
from shardkit.format.recipe import RowRules
from shardkit.format.samples import IGNORE_INDEX, Samples


def index_of(
    samples: Samples, rules: RowRules, spans: NDArray[np.int64], data: NDArray[np.uint8]
) -> NDArray[np.void]:
    """(n,) INDEX_DTYPE rows of samples whose spans lie end to end in `data`.

    `spans`: (n,) bytes of each. Offsets count from the beginning of `data`.
    """
    index = np.zeros(len(samples), INDEX_DTYPE)
    ends = np.cumsum(spans)
    index["offset"] = ends - spans
    index["span"] = spans
    index["n_tokens"] = samples.lengths
    # labels [-100, 7, 8] of rows [1, 2]: sums [0, 0, 1, 2], at the starts [0, 0, 2]: 0 and 2
    supervised = np.concatenate([[0], np.cumsum(samples.labels != IGNORE_INDEX)])
    index["n_supervised"] = np.diff(supervised[samples.starts])
    if samples.images:
        index["n_images"] = [len(images) for images in samples.images]
    _set_sizes(index, samples, rules)
    index["n_cut"] = samples.n_cut
    index["source"] = samples.source
    index["record"] = samples.record
    index["piece"] = 0 if samples.piece is None else samples.piece
    index["flags"] = 0 if samples.flags is None else samples.flags
    view, digest = data.data, xxhash.xxh3_64_intdigest
    begins = index["offset"].tolist()
    index["hash"] = [digest(view[a:b]) for a, b in zip(begins, ends.tolist(), strict=True)]
    return index


def _set_sizes(index: NDArray[np.void], samples: Samples, rules: RowRules) -> None:
    """Fill length, n_image_tokens, cost2 and n_first: what the rows are to the model.

    For documents of 3 and 2 tokens in one row, an image of 4 places in the second: length 8,
    n_image_tokens 4, cost2 3 * 3 + 5 * 5 = 34.
    """
    owner, start, length = documents_of(samples)
    index["n_first"] = n_first_of(samples.labels, owner, start, len(samples))
    places = length
    if samples.images and rules.image_token is not None:
        marks = np.concatenate([[0], np.cumsum(samples.ids == rules.image_token)])
        n_marks = marks[start + length] - marks[start]
        places = length + n_marks * (rules.image_tokens - 1)
        np.add.at(index["n_image_tokens"], owner, (n_marks * rules.image_tokens).astype(np.uint32))
    elif samples.images:
        index["n_image_tokens"] = [
            sum((image.tokens or 0) * len(image.spans) for image in images)
            for images in samples.images
        ]
    np.add.at(index["length"], owner, places.astype(np.uint32))
    np.add.at(index["cost2"], owner, places.astype(np.uint64) ** np.uint64(2))


def n_first_of(
    labels: NDArray[np.int32], owner: NDArray[np.int64], start: NDArray[np.int64], n_samples: int
) -> NDArray[np.int64]:
    """(n_samples,) documents of each sample whose first token has a label.

    `owner`, `start`: of each document its sample, and its first token in `labels`.
    """
    has_label = labels[start] != IGNORE_INDEX
    return np.bincount(owner[has_label], minlength=n_samples)


def documents_of(
    samples: Samples,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(n,) of each document the sample it is in, its first token in `ids`, its tokens."""
    if samples.segments is None:
        return np.arange(len(samples)), samples.starts[:-1], samples.lengths
    owner = samples.segments["sample"].astype(np.int64)
    start = samples.starts[owner] + samples.segments["start"]
    return owner, start, samples.segments["length"].astype(np.int64)
