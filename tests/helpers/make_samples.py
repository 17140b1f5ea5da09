"""Random samples for tests of the format: ids, labels, images, segments."""

from __future__ import annotations

import itertools

import numpy as np

from shardkit.format.samples import SEGMENT_DTYPE, Samples, StoredImage


def make_samples(
    lengths: list[int], *, seed: int = 0, with_images: bool = False, is_packed: bool = False
) -> Samples:
    """Samples of the given lengths; when packed, each is cut into up to three segments."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])
    n = len(lengths)
    ids = rng.integers(0, 1000, starts[-1]).astype(np.int32)
    labels = np.where(rng.random(len(ids)) < 0.5, -100, ids).astype(np.int32)
    images = tuple(
        tuple(
            StoredImage(f"{i}/{k}.jpg", rng.bytes(int(rng.integers(1, 2000))), "jpg", 10 + k, 20)
            for k in range(i % 3)
        )
        for i in range(n if with_images else 0)
    )
    return Samples(
        ids=ids,
        labels=labels,
        starts=starts,
        source=rng.integers(0, 3, n).astype(np.uint32),
        record=rng.integers(0, 10**12, n).astype(np.uint64),
        n_cut=rng.integers(0, 5, n).astype(np.uint32),
        images=images,
        row_ids=tuple((f"row-{i}",) for i in range(n)) if with_images else (),
        segments=make_segments(lengths) if is_packed else None,
    )


def make_segments(lengths: list[int]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Segments that cover packs of the given lengths."""
    rows = []
    for sample, length in enumerate(lengths):
        cuts = sorted({0, length // 3, length // 2, length})
        for start, end in itertools.pairwise(cuts):
            rows.append((sample, start, end - start, 0, sample, 0, 0, 0, 0))
    return np.array(rows, SEGMENT_DTYPE)
