"""A shard that is read: checked once when opened, every sample checked when first read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.errors import CorruptShard, MissingShard
from shardkit.format.canonical import sha256_of
from shardkit.format.codec import codec_of_file, open_stream
from shardkit.format.footer import check_version
from shardkit.format.layout import (
    BLOCK,
    FORMAT_MINOR,
    INDEX_DTYPE,
    NPY_HEADER,
    TOKENS_START,
    key_of,
    padded,
)
from shardkit.format.manifest import ShardEntry
from shardkit.format.places import REBUILD, read_array, read_footer_of, read_place
from shardkit.format.recipe import TOKEN_ROWS
from shardkit.format.render import SampleMeta
from shardkit.format.samples import SEGMENT_DTYPE
from shardkit.format.tar import Member, skim, walk
from shardkit.format.writer import ShardWriter

__all__ = ["Shard", "ShardWriter"]


class Shard:
    """One shard file: its footer, index and samples (docs/format.md, sections 5 to 7).

    Open it with `Shard.open`. Arrays are views into the mapped file when it is not compressed.
    """

    def __init__(
        self,
        path: str | Path,
        expected: ShardEntry | None = None,
        source_names: Sequence[str] = (),
        where: str | None = None,
        held: object = None,
    ) -> None:
        self._path = path
        self.name = os.path.basename(path) if expected is None else expected.name
        self.label = where or str(path)
        self._source_names = source_names
        self.held = held
        _check_file(path, expected, self.label)
        self._stream = open_stream(path)
        self.footer = read_footer_of(self._stream, expected, self.label)
        self.n_samples = self.footer.n_samples
        self.n_rows = self.footer.n_rows
        self.index = read_array(self._stream, self.footer.index, INDEX_DTYPE, "index", self.label)
        self.segments: NDArray[np.void] | None = None
        if self.footer.segments is not None:
            place = self.footer.segments
            self.segments = read_array(self._stream, place, SEGMENT_DTYPE, "segments", self.label)
        self._check_places()
        self.segment_starts = self._check_segments()
        """(n_samples + 1,) the first segment of each sample; empty without segments."""
        self.is_checked = np.zeros(self.n_samples, np.bool_)
        """(n_samples,) bool: samples whose hash was seen to be right. Who checks a sample without
        `check` notes it here."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        expected: ShardEntry | None = None,
        source_names: Sequence[str] = (),
        where: str | None = None,
        held: object = None,
    ) -> Shard:
        """Open a shard and check footer, index and segments; `check` and `recipe` check the rest.

        `expected`: the manifest's entry, which the file must match in size and footer.
        `source_names` and `where` (what the file is called): only for error messages. `held`: kept
        as long as the shard. Raises MissingShard, CorruptShard, UnsupportedVersion.
        """
        return cls(path, expected, source_names, where, held)

    @property
    def path(self) -> Path:
        """The shard's file."""
        return Path(self._path)

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """The whole file, (n_bytes,) uint8; raises TypeError for a compressed shard."""
        return self._stream.buffer

    @property
    def is_compressed(self) -> bool:
        """Whether samples are read from frames instead of a mapped tar."""
        return not codec_of_file(self._path).is_plain

    @property
    def has_segments(self) -> bool:
        """Whether the documents of its rows are listed (packs, preference rows)."""
        return self.segments is not None

    @property
    def is_newer(self) -> bool:
        """Whether the shard is of a later minor version, and may have what is unknown here."""
        minor = self.footer.version.partition(".")[2]
        return not minor.isdecimal() or int(minor) > FORMAT_MINOR

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What turned rows into its tokens.

        Raises CorruptShard when the shard's manifest is not as the format says, UnsupportedVersion.
        """
        where = f"{self.label}, manifest"
        try:
            data = bytes(read_place(self._stream, self.footer.manifest, "manifest", self.label))
            fields = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise CorruptShard(f"no JSON object: {err}", where=where, fix=REBUILD) from err
        check_version(fields, where)
        recipe = fields.get("recipe")
        if not isinstance(recipe, dict) or sha256_of(recipe) != fields.get("recipe_sha256"):
            raise CorruptShard("the recipe does not match its hash", where=where, fix=REBUILD)
        return recipe

    def key(self, i: int) -> str:
        """The key of sample i: eight digits."""
        return key_of(i)

    def tokens(self, i: int) -> NDArray[np.int32]:
        """(R, n_tokens) int32: the token rows of sample i, input_ids, labels and any others.

        Raises CorruptShard.
        """
        length = int(self.index["n_tokens"][i])
        span = self.span(i)
        stop = TOKENS_START + self.n_rows * 4 * length
        return np.frombuffer(span[TOKENS_START:stop], np.int32).reshape(self.n_rows, length)

    def images(self, i: int) -> list[memoryview]:
        """The encoded bytes of sample i's images, in reading order; raises CorruptShard."""
        n_images, n_tokens = (int(self.index[name][i]) for name in ("n_images", "n_tokens"))
        if not n_images:
            return []
        span = self.span(i)
        first = BLOCK + padded(NPY_HEADER + self.n_rows * 4 * n_tokens)
        try:
            return skim(span, first, n_images)
        except ValueError as err:
            raise CorruptShard(str(err), where=self.where(i), fix=REBUILD) from err

    def meta(self, i: int) -> SampleMeta | None:
        """The JSON member of sample i: its records' own ids and its images; None for a text sample.

        Raises CorruptShard when the member is not as the format says.
        """
        n_images = int(self.index["n_images"][i])
        if not n_images:
            return None
        span = self.span(i)
        data = bytes(span[self._members(i, span)[1 + n_images].data])
        try:
            return msgspec.json.decode(data, type=SampleMeta)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            what = f"its JSON member is not as the format says: {err}"
            raise CorruptShard(what, where=self.where(i), fix=REBUILD) from err

    def n_known_members(self, i: int) -> int:
        """Members of sample i that this version knows; others may come after them."""
        n_images = int(self.index["n_images"][i])
        return 1 + n_images + bool(n_images)

    def members(self, i: int) -> list[Member]:
        """The tar members of sample i; offsets count from its span's start. Raises CorruptShard."""
        return self._members(i, self.span(i))

    def segments_of(self, i: int) -> NDArray[np.void]:
        """(n_segments,) SEGMENT_DTYPE rows of sample i, in order; empty when the shard has none."""
        if self.segments is None:
            return np.zeros(0, SEGMENT_DTYPE)
        return self.segments[self.segment_starts[i] : self.segment_starts[i + 1]]

    def frames_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) the frame that holds each of these samples, and (n,) where it begins in the stream.

        Only of a compressed shard. Raises CorruptShard for a sample that is not in one frame.
        """
        offsets = self.index["offset"][rows].astype(np.int64)
        frames = self._stream.frame_of(offsets)
        begins, ends = self._stream.frame_bounds(frames)
        beyond = np.flatnonzero(offsets + self.index["span"][rows].astype(np.int64) > ends)
        if len(beyond):
            raise CorruptShard(
                "a sample that is cut by the end of a frame",
                where=self.where(int(rows[beyond[0]])),
                fix=REBUILD,
            )
        return frames, begins

    def frame(self, number: int) -> bytes:
        """One frame of a compressed shard, uncompressed; its samples are not checked yet."""
        return self._stream.decompress(number)

    def check(self, rows: NDArray[np.int64]) -> None:
        """Check the hashes of those of these samples that were not checked before.

        Raises CorruptShard that names the first one that differs.
        """
        fresh = rows[~self.is_checked[rows]]
        if not len(fresh):
            return
        part = self.index[fresh]
        digest, read = xxhash.xxh3_64_intdigest, self._stream.read
        places = zip(
            part["offset"].tolist(), part["span"].tolist(), part["hash"].tolist(), strict=True
        )
        for number, (offset, span, expected) in enumerate(places):
            found = digest(read(offset, span))
            if found != expected:
                raise self._damaged(int(fresh[number]), expected, found)
        self.is_checked[fresh] = True

    def __enter__(self) -> Self:
        return self

    def pieces(self, n_bytes: int = 8 << 20) -> Iterator[memoryview]:
        """The uncompressed tar, from its first to its last byte; not checked."""
        for begin in range(0, self._stream.size, n_bytes):
            yield self._stream.read(begin, min(n_bytes, self._stream.size - begin))

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; arrays that view it stay valid."""
        self._stream.close()
        self.held = None

    def where(self, i: int) -> str:
        """Sample i by shard, key and source row, for messages."""
        source, record = int(self.index["source"][i]), int(self.index["record"][i])
        known = source < len(self._source_names)
        name = self._source_names[source] if known else f"source {source}"
        return f"{self.label}, sample {key_of(i)} ({name} row {record})"

    def span(self, i: int) -> memoryview:
        """All bytes of sample i, headers and padding included, whose hash is right.

        Raises CorruptShard.
        """
        if not self.is_checked[i]:
            self.check(np.array([i]))
        entry = self.index[i]
        return self._stream.read(int(entry["offset"]), int(entry["span"]))

    def _members(self, i: int, span: memoryview) -> list[Member]:
        try:
            found = list(walk(span, 0, len(span)))
        except ValueError as err:
            raise CorruptShard(str(err), where=self.where(i), fix=REBUILD) from err
        n_known = self.n_known_members(i)
        if len(found) < n_known:
            raise CorruptShard(
                "a sample with too few members",
                where=self.where(i),
                expected=str(n_known),
                found=str(len(found)),
                fix=REBUILD,
            )
        return found

    def _check_places(self) -> None:
        """Samples lie end to end, from the first member to the index, and hold their tokens."""
        index, footer = self.index, self.footer
        offsets, spans = index["offset"], index["span"]
        ends = offsets + spans
        n_tokens = index["n_tokens"].astype(np.uint64)  # NumPy 1 would multiply as uint32
        needed = n_tokens * np.uint64(self.n_rows * 4) + np.uint64(TOKENS_START)
        is_wrong = (needed > spans) | (spans % np.uint64(BLOCK) != 0)
        is_wrong[1:] |= offsets[1:] != ends[:-1]
        begin = footer.manifest.offset + -(-footer.manifest.size // BLOCK) * BLOCK
        first, last = (int(offsets[0]), int(ends[-1])) if len(index) else (begin, begin)
        fits = (
            len(index) == self.n_samples
            and self.n_rows >= len(TOKEN_ROWS)
            and (first, last) == (begin, footer.index.offset - BLOCK)
            and not is_wrong.any()
        )
        if not fits:
            raise CorruptShard("the index does not fit the file", where=self.label, fix=REBUILD)

    def _check_segments(self) -> NDArray[np.int64]:
        """(n_samples + 1,) where the segments of each sample begin; each covers its row.

        Segments of samples [0, 0, 1] at [0, 3, 0], of [3, 2, 4] tokens, end at [3, 5, 4]. Each must
        start where the one before ends, [0, 3, 5], or at 0 when it is a sample's first: [0, 3, 0].
        """
        if self.segments is None:
            return np.zeros(0, np.int64)
        samples, start = self.segments["sample"], self.segments["start"].astype(np.int64)
        ends = start + self.segments["length"]
        begins = np.searchsorted(samples, np.arange(self.n_samples + 1))
        wanted = np.append(0, ends[:-1]) if len(ends) else ends
        heads = begins[:-1]
        is_right = bool(np.all(samples[1:] >= samples[:-1])) and len(samples) == begins[-1]
        is_right = is_right and bool(np.all(np.diff(begins) > 0))
        if is_right and len(ends):
            wanted[heads] = 0
            is_right = np.array_equal(start, wanted) and np.array_equal(
                ends[begins[1:] - 1], self.index["n_tokens"].astype(np.int64)
            )
        if not is_right:
            raise CorruptShard("the segments do not fit the index", where=self.label, fix=REBUILD)
        return begins

    def _damaged(self, i: int, expected: int, found: int) -> CorruptShard:
        return CorruptShard(
            "sample does not match its hash",
            where=self.where(i),
            expected=f"xxh3 {expected:016x}",
            found=f"xxh3 {found:016x}",
            fix=REBUILD,
        )


def _check_file(path: str | Path, expected: ShardEntry | None, where: str) -> None:
    """Raise MissingShard or CorruptShard unless the file has the size that the manifest says."""
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        info = None
    if info is None or not stat.S_ISREG(info.st_mode):
        raise MissingShard(
            "the shard is not there",
            where=where,
            fix="Copy it back, or rebuild it: shardkit repair DATASET --source FILE ...",
        )
    n_bytes = info.st_size
    if n_bytes < NPY_HEADER or (expected is not None and n_bytes != expected.n_bytes):
        raise CorruptShard(
            "the file has the wrong size",
            where=where,
            expected=f"{expected.n_bytes} bytes" if expected else "a tar file",
            found=f"{n_bytes} bytes",
            fix=REBUILD,
        )
