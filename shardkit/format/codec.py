"""Codecs: how the bytes of a shard's tar lie in its file (docs/format.md, section 9)."""

from __future__ import annotations

import hashlib
import mmap
import struct
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from shardkit.errors import CorruptShard, UsageError
from shardkit.format.mapped import map_file

FRAME_BYTES = 256 * 1024
"""A frame ends at the first sample border at or after this many uncompressed bytes."""
_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_ENTRY = np.dtype([("compressed", "<u4"), ("size", "<u4")])
_FOOTER = struct.Struct("<IBI")


class Sink(Protocol):
    """Where the writer puts the tar stream."""

    def write(self, data: NDArray[np.uint8], borders: NDArray[np.int64]) -> None:
        """Add bytes; `borders` are the places in `data` (ends of samples) where a frame may end."""

    def finish(self) -> None:
        """Write what is left, and the seek table where there is one."""


class PlainSink(Sink):
    """The tar as it is; counts and hashes what is written to the file."""

    def __init__(self, file: BinaryIO, level: int = 0) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.n_bytes = 0

    def write(self, data: NDArray[np.uint8], borders: NDArray[np.int64]) -> None:
        self.put(data.data)

    def finish(self) -> None:
        pass

    def put(self, data: bytes | memoryview) -> None:
        """Append bytes to the file and to its hash."""
        self._file.write(data)
        self._sha256.update(data)
        self.n_bytes += len(data)

    @property
    def sha256(self) -> str:
        """The sha256 of all bytes written to the file."""
        return self._sha256.hexdigest()


class ZstdSink(PlainSink):
    """Independent zstd frames that end at sample borders, and a seek table at the end."""

    def __init__(self, file: BinaryIO, level: int) -> None:
        super().__init__(file)
        self._compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
        self._frames: list[tuple[int, int]] = []
        self._pending = bytearray()

    def write(self, data: NDArray[np.uint8], borders: NDArray[np.int64]) -> None:
        view, begun = data.data, 0
        for border in borders.tolist():
            if len(self._pending) + border - begun >= FRAME_BYTES:
                self._pending += view[begun:border]
                self._end_frame()
                begun = border
        self._pending += view[begun:]

    def finish(self) -> None:
        self._end_frame()
        table = np.array(self._frames, _ENTRY).tobytes()
        footer = _FOOTER.pack(len(self._frames), 0, _SEEKABLE)
        self.put(struct.pack("<II", _SKIPPABLE, len(table) + len(footer)) + table + footer)

    def _end_frame(self) -> None:
        if self._pending:
            frame = self._compressor.compress(bytes(self._pending))
            self._frames.append((len(frame), len(self._pending)))
            self.put(frame)
            self._pending = bytearray()


class Stream(ABC):
    """The uncompressed tar of a shard, readable at any place.

    A mapped plain one has `buffer`, a compressed one has frames: `frame_of`, `frame_bounds`,
    `decompress`. What a stream does not have raises TypeError.
    """

    size: int
    """Bytes of the uncompressed tar."""

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """The whole tar, (size,) uint8; only of a mapped plain one."""
        raise TypeError("a compressed shard has no buffer")

    @abstractmethod
    def read(self, offset: int, size: int) -> memoryview:
        """The `size` bytes at `offset`, which lie within the stream.

        Raises CorruptShard when a frame of a compressed one is damaged.
        """

    def frame_of(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the frame in which each uncompressed offset lies."""
        raise TypeError("a plain shard has no frames")

    def frame_bounds(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """(n,) where each of these frames begins in the uncompressed tar, (n,) where it ends."""
        raise TypeError("a plain shard has no frames")

    def decompress(self, number: int) -> bytes:
        """The bytes of one frame, uncompressed, which are not kept; raises CorruptShard."""
        raise TypeError("a plain shard has no frames")

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


class PlainStream(Stream):
    """A mapped .tar."""

    def __init__(self, path: str | Path) -> None:
        self._map = map_file(path)
        self.size = len(self._map)
        self._buffer = np.frombuffer(self._map, np.uint8)
        self._view = memoryview(self._map)

    @property
    def buffer(self) -> NDArray[np.uint8]:
        return self._buffer

    def read(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]

    def close(self) -> None:
        """The map goes when the last array that views it goes."""
        self._view = memoryview(b"")
        self._buffer = np.zeros(0, np.uint8)


class Ranges(Protocol):
    """A file elsewhere, of which parts are asked for."""

    def __len__(self) -> int:
        """Bytes of the file."""

    def __getitem__(self, part: slice, /) -> bytes:
        """The bytes of a slice of the file."""


class RangedStream(Stream):
    """A .tar elsewhere, of which only what is read is asked for."""

    def __init__(self, path: str | Path, data: Ranges) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> memoryview:
        return memoryview(self._data[offset : offset + size])

    def close(self) -> None:
        pass


class ZstdStream(Stream):
    """A .tar.zst, mapped or elsewhere, read frame by frame; `read` keeps the last `n_cached`."""

    def __init__(
        self, path: str | Path, n_cached: int = 8, data: mmap.mmap | Ranges | None = None
    ) -> None:
        self._path = path
        self._map = map_file(path) if data is None else data
        entries = _seek_table(self._map, path)
        self._starts = np.concatenate([[0], np.cumsum(entries["compressed"].astype(np.int64))])
        self._offsets = np.concatenate([[0], np.cumsum(entries["size"].astype(np.int64))])
        self.size = int(self._offsets[-1])
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._n_cached = n_cached
        self._decompressor = zstandard.ZstdDecompressor()
        self._lock = threading.RLock()
        """Threads that used the decompressor at once would end the process."""

    def read(self, offset: int, size: int) -> memoryview:
        first = int(np.searchsorted(self._offsets, offset, side="right")) - 1
        skip = offset - int(self._offsets[first])
        frame = self._frame(first)
        if skip + size <= len(frame):
            return memoryview(frame)[skip : skip + size]
        parts = [frame[skip:]]
        missing = size - len(parts[0])
        while missing > 0:
            first += 1
            parts.append(self._frame(first)[:missing])
            missing -= len(parts[-1])
        return memoryview(b"".join(parts))

    def frame_of(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._offsets, offsets, side="right") - 1

    def frame_bounds(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        return self._offsets[numbers], self._offsets[numbers + 1]

    def decompress(self, number: int) -> bytes:
        return self._decompress(number)

    def close(self) -> None:
        self._cache.clear()

    def _frame(self, number: int) -> bytes:
        with self._lock:
            cached = self._cache.get(number)
            if cached is not None:
                self._cache.move_to_end(number)
                return cached
            frame = self._decompress(number)
            self._cache[number] = frame
            if len(self._cache) > self._n_cached:
                self._cache.popitem(last=False)
            return frame

    def _decompress(self, number: int) -> bytes:
        if number >= len(self._offsets) - 1:
            raise _corrupt(self._path, "a read beyond the last frame")
        size = int(self._offsets[number + 1] - self._offsets[number])
        raw = self._map[int(self._starts[number]) : int(self._starts[number + 1])]
        try:
            if zstandard.frame_content_size(raw) != size:
                raise _corrupt(self._path, f"frame {number} is not of the size in the seek table")
            with self._lock:
                return self._decompressor.decompress(raw, max_output_size=size)
        except zstandard.ZstdError as err:
            raise _corrupt(self._path, f"frame {number} does not decompress: {err}") from err


def _seek_table(data: mmap.mmap | Ranges, path: str | Path) -> NDArray[np.void]:
    if len(data) < _FOOTER.size + 8:
        raise _corrupt(path, "no zstd seek table")
    n_frames, descriptor, magic = _FOOTER.unpack(data[len(data) - _FOOTER.size : len(data)])
    n_bytes = n_frames * _ENTRY.itemsize
    begin = len(data) - _FOOTER.size - n_bytes - 8
    if magic != _SEEKABLE or descriptor != 0 or begin < 0:
        raise _corrupt(path, "no zstd seek table")
    if struct.unpack("<II", data[begin : begin + 8]) != (_SKIPPABLE, n_bytes + _FOOTER.size):
        raise _corrupt(path, "a damaged zstd seek table")
    entries = np.frombuffer(data[begin + 8 : begin + 8 + n_bytes], _ENTRY)
    if int(entries["compressed"].sum(dtype=np.int64)) != begin:
        raise _corrupt(path, "a zstd seek table that does not cover the file")
    return entries


def _corrupt(path: str | Path, what: str) -> CorruptShard:
    return CorruptShard(
        what,
        where=str(path),
        fix="The file is cut short or damaged: rebuild it with `shardkit repair`.",
    )


def ranged_zstd(name: str, data: Ranges) -> ZstdStream:
    """The stream of a .tar.zst elsewhere; `name` is for messages."""
    return ZstdStream(name, data=data)


@dataclass(frozen=True, slots=True)
class Codec:
    """Everything that the rest of shardkit asks of a codec."""

    suffix: str
    """How the names of its shards' files end."""
    levels: range
    """Levels that may be asked for, as NAME:LEVEL; empty: it has none."""
    level: int
    """The level of the bare NAME."""
    sink: Callable[[BinaryIO, int], PlainSink]
    """From an open file and a level to the sink that writes it."""
    stream: Callable[[str | Path], Stream]
    """From a file's path to the stream that reads it."""
    ranged: Callable[[str, Ranges], Stream]
    """From the name and the ranges of a file elsewhere to the stream that reads it."""
    is_plain: bool
    """Whether the file is the tar itself; else samples are read frame by frame."""


CODECS: dict[str, Codec] = {
    "none": Codec(".tar", range(0), 0, PlainSink, PlainStream, RangedStream, is_plain=True),
    "zstd": Codec(".tar.zst", range(1, 23), 3, ZstdSink, ZstdStream, ranged_zstd, is_plain=False),
}
"""Every codec, by the name that `--compression` and the manifest's `compression` begin with."""


def parse_compression(text: str) -> tuple[Codec, int]:
    """`NAME` or `NAME:LEVEL` as (codec, level); raises UsageError."""
    name, colon, level = text.partition(":")
    codec = CODECS.get(name)
    if codec is not None and not colon:
        return codec, codec.level
    if codec is not None and level.isascii() and level.isdigit() and int(level) in codec.levels:
        return codec, int(level)
    raise UsageError(
        f"there is no compression {text!r}",
        expected=compression_choices(),
        fix="Use --compression none, or --compression zstd:3.",
    )


def compression_choices() -> str:
    """What parse_compression takes, in words: `none, zstd or zstd:LEVEL ...`."""
    words = list(CODECS)
    words += [
        f"{name}:LEVEL with LEVEL from {codec.levels[0]} to {codec.levels[-1]}"
        for name, codec in CODECS.items()
        if codec.levels
    ]
    return ", ".join(words[:-1]) + " or " + words[-1]


def codec_of_file(path: str | Path) -> Codec:
    """The codec of a shard, by its suffix; the plain one when no suffix is known."""
    name = str(path)
    for codec in CODECS.values():
        if name.endswith(codec.suffix):
            return codec
    return CODECS["none"]


def is_shard_name(name: str) -> bool:
    """Whether a file name ends as that of a shard."""
    return name.endswith(tuple(codec.suffix for codec in CODECS.values()))


def make_sink(file: BinaryIO, compression: str) -> PlainSink:
    """The sink of a codec given as parse_compression takes it; raises UsageError."""
    codec, level = parse_compression(compression)
    return codec.sink(file, level)


def open_stream(path: str | Path) -> Stream:
    """The stream of a shard, chosen by its suffix."""
    return codec_of_file(path).stream(path)


def open_ranges(name: str, data: Ranges) -> Stream:
    """The stream of a shard elsewhere, of which no more is asked for than what is read."""
    return codec_of_file(name).ranged(name, data)
