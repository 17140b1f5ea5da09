"""One pass over an input file: its digest, its kind, and where its rows are.

Memory does not grow with the file: row borders go to a spool file. A compressed file is
decompressed into the spool once, so that a part can begin anywhere.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import numpy as np
import zstandard

from shardkit.errors import BadInput
from shardkit.format.atomic import appear
from shardkit.sources import csv_rows as table
from shardkit.sources.json_rows import Finder, LineFinder, SyntaxProblem
from shardkit.sources.json_rows_fast import RegularFinder
from shardkit.sources.spooled import Hashes, hashes_of
from shardkit.sources.stamp import Stamp, check_unchanged, stamp_of
from shardkit.sources.tars import find_samples, is_tar

Kind = Literal["array", "jsonl", "tar", "parquet", "arrow"]

_LINES: Kind = "jsonl"
BLOCK_BYTES = 1 << 18
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing row borders, not of reading the input."""
_PACKED_BLOCK_BYTES = 1 << 12
"""Bytes of a .zst that are read at once: they become 128 MiB at most, whatever they hold."""
_BOM = b"\xef\xbb\xbf"
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


@dataclass(frozen=True, slots=True)
class SourceScan:
    """What one pass over an input file found. Small, and readable by other processes."""

    path: str
    name: str
    """The path relative to the folder that all inputs share."""
    sha256: str
    """The digest of the file, hex; empty while it is still being found (`ranges.digested`)."""
    n_bytes: int
    kind: Kind
    n_rows: int
    data: str
    """The file that `borders` speak of: the input itself, or its decompressed copy."""
    borders: str | None
    """A file of n_rows pairs of uint64: begin and end of each row, bytes. None: Parquet, Arrow."""
    duplicates: str | None = None
    """A file of DUPLICATE_DTYPE rows that stand earlier already; None: that was not looked at."""
    stamp: Stamp = ()
    """What the input was when it was scanned."""
    spool: Hashes = ()
    """The files that the scan made, with their hashes."""

    @property
    def row_bytes(self) -> float:
        """Bytes of an average row."""
        size = Path(self.data).stat().st_size if self.borders else self.n_bytes
        return size / max(self.n_rows, 1)


Progress = Callable[[int], None]
"""Called with the number of bytes that were read since the last call."""


def scan(path: Path, *, name: str, spool: Path, progress: Progress | None = None) -> SourceScan:
    """Scan one file, or one folder saved by `datasets.save_to_disk`.

    `spool` is a path prefix for the files that hold the borders and the decompressed copy.
    Raises BadInput that names file, line and byte where the structure of the file is broken, or
    when the file cannot be read or changes meanwhile.
    """
    with reading(path):
        stamp = stamp_of(path)
        found = _scan(path, name, spool, progress)
        check_unchanged(path, stamp)
    made = [one for one in (found.borders, found.data) if one is not None and one != found.path]
    return replace(found, stamp=stamp, spool=hashes_of(made))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """BadInput instead of what goes wrong while an input is read; a full disk stays an OSError."""
    try:
        yield
    except OSError as err:
        if err.errno in DISK_IS_FULL:
            raise
        is_other = err.filename is not None and str(err.filename) != str(path)
        raise BadInput(
            f"cannot be read: {err.strerror or err}",
            where=str(path),
            found=f"in the way is {err.filename}" if is_other else None,
            fix="Check the path and the rights of the file.",
        ) from err
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise damaged(str(path), err) from err


def damaged(path: str, err: Exception) -> BadInput:
    """The error of a table or folder that another library cannot read to its end."""
    return BadInput(
        f"is damaged, or not what its name says: {type(err).__name__}: {str(err)[:300]}",
        where=path,
        fix="Fetch or write the file again.",
    )


def _scan(path: Path, name: str, spool: Path, progress: Progress | None) -> SourceScan:
    if path.is_dir():
        return _scan_arrow(path, name)
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == _PARQUET:
        return _scan_parquet(path, name)
    data = path
    digest = None
    if magic[:2] == _GZIP or magic == _ZSTD:
        data = spool.with_name(spool.name + ".data")
        digest = _decompress(path, data, progress)
    if table.is_table(path):
        data, digest = table.as_lines(path, data, digest, spool.with_name(spool.name + ".lines"))
    if is_tar(data):
        return _scan_tar(path, name, data, digest, spool.with_name(spool.name + ".rows"))
    return _scan_json(path, name, data, digest, spool.with_name(spool.name + ".rows"), progress)


def is_plain_json(path: Path) -> bool:
    """Whether a file is JSON, if it is anything, and not compressed."""
    with open(path, "rb") as file:
        magic = file.read(4)
    is_packed = magic[:2] == _GZIP or magic in (_ZSTD, _PARQUET)
    return not is_packed and not table.is_table(path) and not is_tar(path)


def _scan_json(
    path: Path, name: str, data: Path, digest: str | None, borders: Path, progress: Progress | None
) -> SourceScan:
    sha256 = hashlib.sha256()
    n_rows = 0
    with open(data, "rb") as file, appear(borders) as out:
        start, kind = (0, _LINES) if table.is_table(path) else kind_of(file, path)
        finder: Finder = RegularFinder() if kind == "array" else LineFinder(start)
        skip = start
        try:
            for block in iter(lambda: file.read(BLOCK_BYTES), b""):
                sha256.update(block)
                blank = min(skip, len(block))
                rows = finder.feed(b" " * blank + block[blank:] if blank else block)
                skip -= blank
                out.write(rows.tobytes())
                n_rows += len(rows)
                if progress and digest is None:
                    progress(len(block))
            rows = finder.finish()
            out.write(rows.tobytes())
            n_rows += len(rows)
        except SyntaxProblem as err:
            raise _broken(path, data, err.what, err.offset) from err
    return SourceScan(
        path=str(path),
        name=name,
        sha256=digest or sha256.hexdigest(),
        n_bytes=path.stat().st_size,
        kind=kind,
        n_rows=n_rows,
        data=str(data),
        borders=str(borders),
    )


def _scan_tar(path: Path, name: str, data: Path, digest: str | None, borders: Path) -> SourceScan:
    n_rows = 0
    with open(data, "rb") as file, appear(borders) as out:
        digest = digest or hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        for rows in find_samples(file, path):
            out.write(rows.tobytes())
            n_rows += len(rows)
    return SourceScan(
        path=str(path),
        name=name,
        sha256=digest,
        n_bytes=path.stat().st_size,
        kind="tar",
        n_rows=n_rows,
        data=str(data),
        borders=str(borders),
    )


def kind_of(file: BinaryIO, path: Path) -> tuple[int, Kind]:
    """(bytes of a byte order mark, array or jsonl); raises BadInput. The file is at its start."""
    head = file.read(1 << 16)
    start = len(_BOM) if head.startswith(_BOM) else 0
    text = head[start:].lstrip()
    while head and not text:
        head = file.read(1 << 16)
        text = head.lstrip()
    file.seek(0)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(
            "this is UTF-16",
            where=str(path),
            expected="UTF-8",
            fix="Write it anew: iconv -f UTF-16 -t UTF-8 OLD > NEW",
        )
    if not text or text[:1] not in b"[{":
        raise BadInput(
            "this is neither a JSON array nor JSONL",
            where=str(path),
            expected="'[' or '{' as the first character",
            found=repr(text[:20]) if text else "an empty file",
            fix="Give JSON array, JSONL, CSV (called .csv), Parquet, or a folder of "
            "datasets.save_to_disk.",
        )
    first_line, newline, rest = text.partition(b"\n")
    is_whole = _parses(first_line)
    if text[:1] == b"[":
        is_lines = is_whole and bool(newline) and rest.lstrip()[:1] in (b"[", b"{")
        is_called_so = path.name.split(".")[-1] in ("jsonl", "ndjson")
        is_lines |= is_whole and is_called_so and not _holds_rows(first_line)
        return start, "jsonl" if is_lines else "array"
    if not is_whole and (newline or len(head) < 1 << 16) and _is_pretty(text):
        raise BadInput(
            "this is one JSON object, not a list of rows",
            where=str(path),
            expected="an array of rows, or one object a line",
            fix="Write the rows as a JSON array, or as JSONL.",
        )
    return start, "jsonl"


def _holds_rows(line: bytes) -> bool:
    """Whether an array is a file of rows in one line, and not one row that is a list of turns."""
    items = msgspec.json.decode(line)
    first = items[0] if items else None
    return isinstance(first, dict) and "role" not in first and "from" not in first


def _is_pretty(text: bytes) -> bool:
    """Whether an object goes on over lines: its first ends in an opened bracket or a comma."""
    first = text.split(b"\n", 1)[0].strip()
    return first == b"{" or first.endswith((b"[", b"{", b","))


def _parses(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _broken(path: Path, data: Path, what: str, offset: int) -> BadInput:
    """The error for a broken structure, with the line counted."""
    line = 1
    with open(data, "rb") as file:
        left = offset
        while left > 0:
            block = file.read(min(BLOCK_BYTES, left))
            if not block:
                break
            line += block.count(b"\n")
            left -= len(block)
    return BadInput(
        what,
        where=f"{path}, line {line}, byte {offset}",
        fix="Mend the file there. (In JSONL, only the broken line would be rejected.)",
    )


def _decompress(path: Path, out: Path, progress: Progress | None) -> str:
    """Write the decompressed file; the sha256 of the compressed one."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as raw, appear(out) as file:
        try:
            for block in _inflated(raw, sha256, progress):
                file.write(block)
        except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as err:
            raise BadInput(
                f"does not decompress: {err}",
                where=str(path),
                fix="The file is damaged or cut short: fetch it again.",
            ) from err
    return sha256.hexdigest()


class _Hashing(io.RawIOBase):
    """A file that hashes what is read from it."""

    def __init__(self, file: BinaryIO, update: Callable[[bytes], None]) -> None:
        self._file = file
        self._update = update

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self._update(data)
        buffer[: len(data)] = data
        return len(data)


def _inflated(raw: BinaryIO, sha256: hashlib._Hash, progress: Progress | None) -> Iterator[bytes]:
    def update(data: bytes) -> None:
        sha256.update(data)
        if progress:
            progress(len(data))

    magic = raw.read(4)
    raw.seek(0)
    source = io.BufferedReader(_Hashing(raw, update), BLOCK_BYTES)
    if magic == _ZSTD:
        yield from _unzstd(iter(lambda: source.read(_PACKED_BLOCK_BYTES), b""))
    else:
        with gzip.open(source) as plain:
            yield from iter(lambda: plain.read(BLOCK_BYTES), b"")
    source.read()


def _unzstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress Zstandard frames one after another; EOFError when the last one is not whole."""
    frames = zstandard.ZstdDecompressor()
    frame = None
    for block in blocks:
        rest = block
        while rest:
            frame = frame or frames.decompressobj()
            yield frame.decompress(rest)
            rest = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the file ends inside a Zstandard frame")


def _scan_parquet(path: Path, name: str) -> SourceScan:
    from shardkit.sources.tables import parquet_rows

    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceScan(
        path=str(path),
        name=name,
        sha256=digest,
        n_bytes=path.stat().st_size,
        kind="parquet",
        n_rows=parquet_rows(path),
        data=str(path),
        borders=None,
    )


def _scan_arrow(path: Path, name: str) -> SourceScan:
    from shardkit.sources.tables import arrow_files, arrow_rows

    files = arrow_files(path)
    sha256 = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            sha256.update(hashlib.file_digest(opened, "sha256").digest())
    return SourceScan(
        path=str(path),
        name=name,
        sha256=sha256.hexdigest(),
        n_bytes=sum(file.stat().st_size for file in files),
        kind="arrow",
        n_rows=arrow_rows(path),
        data=str(path),
        borders=None,
    )


def borders_of(scan: SourceScan) -> np.memmap[tuple[int, int], np.dtype[np.uint64]]:
    """(n_rows, 2) uint64 begin and end of each row, mapped; ValueError where a scan has none."""
    if scan.borders is None or not scan.n_rows:
        raise ValueError(f"{scan.path} has no row borders")
    return np.memmap(scan.borders, np.uint64, "r", shape=(scan.n_rows, 2))
