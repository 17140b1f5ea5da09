"""Samples become one shard file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import BadInput
from shardkit.format.atomic import appear
from shardkit.format.canonical import canonical_json, sha256_of, xxh3_hex
from shardkit.format.codec import make_sink
from shardkit.format.footer import Extent, Footer
from shardkit.format.layout import (
    BLOCK,
    FOOTER_MEMBER,
    FORMAT_NAME,
    FORMAT_VERSION,
    INDEX_DTYPE,
    INDEX_MEMBER,
    MAX_SAMPLE_TOKENS,
    MAX_SHARD_SAMPLES,
    SEGMENTS_MEMBER,
    SHARD_MANIFEST_MEMBER,
)
from shardkit.format.manifest import ShardEntry
from shardkit.format.recipe import TOKEN_ROWS, RowRules
from shardkit.format.render import empty_segments, npy_bytes, render, sample_spans
from shardkit.format.samples import Samples, slice_samples
from shardkit.format.tar import member

_CHUNK_BYTES = 32 << 20


def shard_manifest(recipe: Mapping[str, object]) -> bytes:
    """The first member of every shard: what turned rows into its tokens."""
    return canonical_json(
        {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "recipe": recipe,
            "recipe_sha256": sha256_of(recipe),
        }
    )


class ShardWriter:
    """Writes one shard; it becomes visible, whole, at `close` (docs/format.md, section 5).

    As a context manager, an error inside the block leaves nothing behind.
    """

    def __init__(
        self,
        path: Path,
        *,
        recipe: Mapping[str, object],
        compression: str = "none",
    ) -> None:
        self.path = path
        self.rules = RowRules.of(recipe)
        self._stack = ExitStack()
        self._sink = make_sink(self._stack.enter_context(appear(path)), compression)
        self._index: list[NDArray[np.void]] = []
        self._segments: list[NDArray[np.void]] = []
        self._n_samples = 0
        self._offset = 0
        data = shard_manifest(recipe)
        self._manifest = Extent(BLOCK, len(data), xxh3_hex(data))
        self._put_member(SHARD_MANIFEST_MEMBER, data)

    @property
    def n_bytes(self) -> int:
        """Bytes of the uncompressed tar so far."""
        return self._offset

    def write(self, samples: Samples) -> None:
        """Append samples; the bytes do not depend on how they are divided into calls.

        Raises BadInput for a sample of more tokens than the format allows, OverflowError for more
        samples than a shard can have.
        """
        _check_lengths(samples)
        ends = np.cumsum(sample_spans(samples))
        first = 0
        while first < len(samples):
            begun = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, begun + _CHUNK_BYTES, side="right"))
            last = max(last, first + 1)
            self._write_chunk(slice_samples(samples, first, last))
            first = last

    def close(self) -> ShardEntry:
        """Write index, segments and footer, make the file visible; the manifest's entry of it."""
        index = np.concatenate([np.zeros(0, INDEX_DTYPE), *self._index])
        index_place = self._put_array(INDEX_MEMBER, index)
        segments_place = None
        if self.rules.has_segments:
            segments = np.concatenate([empty_segments(), *self._segments])
            segments_place = self._put_array(SEGMENTS_MEMBER, segments)
        block = Footer(
            n_samples=len(index),
            n_rows=len(TOKEN_ROWS),
            n_bytes=self._offset + BLOCK + BLOCK + 2 * BLOCK,
            manifest=self._manifest,
            index=index_place,
            segments=segments_place,
        ).to_block()
        self._put_member(FOOTER_MEMBER, block)
        self._put(np.zeros(2 * BLOCK, np.uint8))
        self._sink.finish()
        self._stack.close()
        return ShardEntry(
            name=self.path.name,
            n_samples=len(index),
            n_tokens=int(index["n_tokens"].sum(dtype=np.int64)),
            n_supervised=int(index["n_supervised"].sum(dtype=np.int64)),
            n_images=int(index["n_images"].sum(dtype=np.int64)),
            length=int(index["length"].sum(dtype=np.int64)),
            longest=int(index["length"].max(initial=0)),
            n_bytes=self._sink.n_bytes,
            sha256=self._sink.sha256,
            footer=xxh3_hex(block),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)

    def _write_chunk(self, samples: Samples) -> None:
        if self._n_samples + len(samples) > MAX_SHARD_SAMPLES:
            raise OverflowError(f"more than {MAX_SHARD_SAMPLES} samples in one shard")
        buffer, index = render(samples, self.rules, self._n_samples)
        if samples.segments is not None:
            segments = samples.segments.copy()
            segments["sample"] += np.uint32(self._n_samples)
            self._segments.append(segments)
        ends = index["offset"] + index["span"]
        index["offset"] += np.uint64(self._offset)
        self._put(buffer, ends.astype(np.int64))
        self._index.append(index)
        self._n_samples += len(samples)

    def _put_array(self, name: str, array: NDArray[np.void]) -> Extent:
        data = npy_bytes(array)
        place = Extent(self._offset + BLOCK, len(data), xxh3_hex(data))
        self._put_member(name, data)
        return place

    def _put_member(self, name: str, data: bytes) -> None:
        self._put(np.frombuffer(member(name, data), np.uint8))

    def _put(self, data: NDArray[np.uint8], borders: NDArray[np.int64] | None = None) -> None:
        self._sink.write(data, np.zeros(0, np.int64) if borders is None else borders)
        self._offset += len(data)


def _check_lengths(samples: Samples) -> None:
    too_long = np.flatnonzero(samples.lengths > MAX_SAMPLE_TOKENS)
    if len(too_long):
        i = int(too_long[0])
        raise BadInput(
            "a sample has more tokens than a shard can hold",
            where=f"source {int(samples.source[i])}, row {int(samples.record[i])}",
            expected=f"at most {MAX_SAMPLE_TOKENS}",
            found=str(int(samples.lengths[i])),
            fix="Give --max-length, or divide the row.",
        )
