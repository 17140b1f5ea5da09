"""Samples in, shards of about one size out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardkit.format.codec import parse_compression
from shardkit.format.layout import shard_name
from shardkit.format.manifest import ShardEntry
from shardkit.format.recipe import RowRules
from shardkit.format.render import sample_spans
from shardkit.format.samples import Samples, slice_samples
from shardkit.format.shard import ShardWriter


class RollingShardWriter:
    """Writes shards into a folder; a shard ends before the sample that would make it too large.

    Names are numbers within the folder. Where shards end depends on the samples, and on which of
    them come in the first call of `write` (see _even_share).
    """

    def __init__(
        self,
        folder: Path,
        *,
        recipe: Mapping[str, object],
        compression: str,
        shard_size: int,
    ) -> None:
        self._folder = folder
        self._recipe = recipe
        self._is_packed = RowRules.of(recipe).is_packed
        self._compression = compression
        self._shard_size = shard_size
        self._suffix = parse_compression(compression)[0].suffix
        self._writer: ShardWriter | None = None
        self._stack = ExitStack()
        self._entries: list[ShardEntry] = []
        self._n_samples_in_shard = 0
        self._n_bytes_begun = 0
        """Bytes of the current shard before its first sample."""
        self.n_placed = 0
        """Samples written; a sample that is spread over several packs counts once."""

    def write(self, samples: Samples) -> None:
        """Append samples to the current shard, and begin others where it gets too large."""
        spans = sample_spans(samples)
        ends = np.cumsum(spans)
        share = self._even_share(spans)
        first = 0
        while first < len(samples):
            writer = self._open()
            begun = int(ends[first - 1]) if first else 0
            room = min(self._shard_size, self._n_bytes_begun + share) - writer.n_bytes
            last = int(np.searchsorted(ends, begun + room, side="right"))
            if last <= first:
                if self._n_samples_in_shard:
                    self._close()
                    continue
                last = first + 1
            writer.write(slice_samples(samples, first, last))
            self._n_samples_in_shard += last - first
            first = last
        self.n_placed += _n_begun(samples) if self._is_packed else len(samples)

    def _even_share(self, spans: NDArray[np.int64]) -> int:
        """The most bytes of samples in a shard. Samples of one call that begin a shard and need
        several are shared evenly: 100 MB in shards of 64 are twice 50, not 64 and 36. The longest
        sample is added, or the rounding to whole samples would make one shard more.
        """
        n_bytes = int(spans.sum())
        if self._writer is not None or n_bytes <= self._shard_size:
            return self._shard_size
        return -(-n_bytes // -(-n_bytes // self._shard_size)) + int(spans.max())

    def finish(self) -> list[ShardEntry]:
        """End the last shard; the manifest's entries of all, in order."""
        self._close()
        return self._entries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _open(self) -> ShardWriter:
        if self._writer is None:
            path = self._folder / shard_name(len(self._entries), self._suffix)
            self._writer = self._stack.enter_context(
                ShardWriter(path, recipe=self._recipe, compression=self._compression)
            )
            self._n_samples_in_shard = 0
            self._n_bytes_begun = self._writer.n_bytes
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._entries.append(self._writer.close())
            self._stack.close()
            self._writer = None


def _n_begun(samples: Samples) -> int:
    """How many source samples have their first token in these packs."""
    if samples.segments is None:
        return 0
    return int(np.count_nonzero(samples.segments["first"] == 0))
