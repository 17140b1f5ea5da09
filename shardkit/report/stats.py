"""What is in a dataset, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.format.manifest import Manifest

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
N_BARS = 12
"""Bars of a histogram, at most."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram: lengths from `low` up to, but without, `high`."""

    low: int
    high: int
    n: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Lengths are tokens of a row: of a sample, or of a pack when packed."""

    n_samples: int
    n_tokens: int
    n_supervised: int
    n_images: int
    n_bytes: int
    mean_length: float
    percentiles: dict[str, int]
    histogram: list[Bar]
    n_segments: int = 0
    """Packed: pieces of samples in all packs."""
    filled: float | None = None
    """Packed: tokens divided by packs * max_length (images expanded)."""
    n_split: int = 0
    """Packed: segments that continue a sample begun in another pack."""


def index_of(dataset: Dataset) -> tuple[NDArray[np.void], NDArray[np.void] | None]:
    """The index rows of all shards, and the segments of all (None when not packed)."""
    indices, segments = [], []
    for number in range(len(dataset.manifest.shards)):
        shard = dataset.open_shard(number)
        indices.append(shard.index.copy())
        if shard.segments is not None:
            segments.append(shard.segments.copy())
        shard.close()
    return np.concatenate(indices), np.concatenate(segments) if segments else None


def summarize(dataset: Dataset) -> Summary:
    """Numbers of a whole dataset, from its indexes; no token is read.

    Raises CorruptShard or MissingShard when an index cannot be read.
    """
    index, segments = index_of(dataset)
    return summary_of(index, segments, dataset.manifest)


def summary_of(
    index: NDArray[np.void], segments: NDArray[np.void] | None, manifest: Manifest
) -> Summary:
    """Numbers of some index rows and their segments."""
    lengths = index["n_tokens"].astype(np.int64)
    n_tokens = int(lengths.sum())
    points: list[int] = []
    if len(lengths):
        points = np.percentile(lengths, PERCENTILES, method="nearest").tolist()
    max_length = manifest.recipe.get("max_length")
    images = manifest.recipe.get("images") or {}
    extra = int(index["n_images"].sum(dtype=np.int64)) * ((images.get("image_tokens") or 1) - 1)
    filled = None
    if segments is not None and max_length and len(lengths):
        filled = (n_tokens + extra) / (len(lengths) * max_length)
    return Summary(
        n_samples=len(index),
        n_tokens=n_tokens,
        n_supervised=int(index["n_supervised"].sum(dtype=np.int64)),
        n_images=int(index["n_images"].sum(dtype=np.int64)),
        n_bytes=int(index["span"].sum(dtype=np.int64)),
        mean_length=n_tokens / max(len(lengths), 1),
        percentiles={
            f"p{p}": int(v) for p, v in zip(PERCENTILES, points, strict=bool(len(lengths)))
        },
        histogram=histogram(lengths),
        n_segments=len(segments) if segments is not None else 0,
        filled=filled,
        n_split=int(np.count_nonzero(segments["first"])) if segments is not None else 0,
    )


def histogram(lengths: NDArray[np.int64]) -> list[Bar]:
    """At most N_BARS bars of equal, round width; none without lengths."""
    if not len(lengths):
        return []
    top = int(lengths.max()) + 1
    raw = max(1, -(-top // N_BARS))
    magnitude = 10 ** (len(str(raw)) - 1)
    width = next(m * magnitude for m in (1, 2, 4, 5, 8, 10) if m * magnitude >= raw)
    counts = np.bincount(lengths // width)
    return [Bar(i * width, (i + 1) * width, int(n)) for i, n in enumerate(counts)]
