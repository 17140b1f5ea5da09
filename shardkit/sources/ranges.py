"""Row borders of a large JSON file, range by range, each found without the others.

JSONL: a range has the lines that begin in it. An array whose rows are set apart alike
(json_rows_fast.py): a range begins at the first thing after its first byte that looks like a
border. That is only a guess, and a text may hold one; but rows that are proven from one guess must
end exactly at the next one, and the first range begins at the array's bracket: so either all
guesses are borders, or a range says that it is not proven, and the file is scanned from its start.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from shardkit.format.atomic import appear
from shardkit.sources.json_rows import Finder, LineFinder, SyntaxProblem
from shardkit.sources.json_rows_fast import Fence, RegularFinder
from shardkit.sources.scan import (
    BLOCK_BYTES,
    Kind,
    SourceScan,
    is_plain_json,
    kind_of,
    reading,
    scan,
)
from shardkit.sources.spooled import hashes_of
from shardkit.sources.stamp import Stamp, check_unchanged, stamp_of

RANGE_BYTES = 16 << 20
"""About so much of a file is a task of its own."""


def ready() -> None:
    """Do nothing: to ask for it has a process import this module before workers are forked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An input to scan: what `scan` takes."""

    path: Path
    name: str
    spool: Path
    range_bytes: int = RANGE_BYTES


@dataclass(frozen=True, slots=True)
class Cut:
    """A file that is scanned range by range."""

    wanted: Wanted
    kind: Kind
    begins: tuple[int, ...]
    """The first byte of each range; for an array, where its first border is looked for."""
    fence: Fence | None
    """What stands between the rows of an array; None for JSONL."""
    stamp: Stamp

    def piece(self, number: int) -> Path:
        """The file with the borders of one range."""
        spool = self.wanted.spool
        return spool.with_name(f"{spool.name}.rows-{number:05d}")


def looked_at(wanted: Wanted) -> SourceScan | Cut:
    """A file cut into ranges; the whole scan of one that is small, or of another kind.

    Raises what `scan` raises.
    """
    path = wanted.path
    with reading(path):
        is_large = not path.is_dir() and path.stat().st_size >= 2 * wanted.range_bytes
        if is_large and is_plain_json(path):
            found = _cut(wanted)
            if found is not None:
                return found
    return scan(path, name=wanted.name, spool=wanted.spool)


def _cut(wanted: Wanted) -> Cut | None:
    """The ranges; None for an array whose rows are not set apart alike."""
    stamp = stamp_of(wanted.path)
    with open(wanted.path, "rb") as file:
        start, kind = kind_of(file, wanted.path)
        fence = None
        if kind == "array":
            fence = _fence(file.read(BLOCK_BYTES))
            if fence is None:
                return None
        size = os.fstat(file.fileno()).st_size
    n_ranges = size // wanted.range_bytes
    begins = (start, *(i * size // n_ranges for i in range(1, n_ranges)))
    return Cut(wanted, kind, begins, fence, stamp)


def _fence(block: bytes) -> Fence | None:
    """What the first rows of an array are set apart by; None where they are not set apart alike."""
    finder = RegularFinder()
    try:
        finder.feed(block)
    except SyntaxProblem:
        return None
    return finder.fence


def find_borders(task: tuple[Cut, int]) -> int | None:
    """Write the borders of one range; how many rows it has. None when they are not proven."""
    cut, number = task
    path = cut.wanted.path
    with (
        reading(path),
        open(path, "rb") as file,
        open(cut.piece(number), "wb") as out,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        suppress(SyntaxProblem),  # scanned from its start, it has the right words for it
    ):
        if cut.fence is not None:
            return _array(file, data, cut, number, out, cut.fence)
        return _lines(file, data, cut, number, out)
    return None


def _lines(file: BinaryIO, data: mmap.mmap, cut: Cut, number: int, out: BinaryIO) -> int:
    begin, end = _line_begin(data, cut, number), _line_begin(data, cut, number + 1)
    finder = LineFinder.at_line(begin)
    return _found(finder, file, begin, end, out, is_last=True)


def _line_begin(data: mmap.mmap, cut: Cut, number: int) -> int:
    """The first byte of the first line that begins in a range."""
    if number == 0:
        return cut.begins[0]
    if number == len(cut.begins):
        return len(data)
    newline = data.find(b"\n", cut.begins[number] - 1)
    return len(data) if newline < 0 else newline + 1


def _array(
    file: BinaryIO, data: mmap.mmap, cut: Cut, number: int, out: BinaryIO, fence: Fence
) -> int | None:
    comma, end = _comma(data, cut, number), _comma(data, cut, number + 1)
    if number and comma is None:  # the last rows begin before this range
        return 0
    finder = RegularFinder() if comma is None else RegularFinder.at_comma(comma, fence)
    begin = 0 if comma is None else comma + 1
    if end is None:
        return _found(finder, file, begin, len(data), out, is_last=True)
    if comma == end:
        return 0
    last = end - fence.comma + len(fence.mark)
    n_rows = _found(finder, file, begin, last, out, is_last=False)
    return n_rows if finder.fence is not None and finder.proven == end else None


def _comma(data: mmap.mmap, cut: Cut, number: int) -> int | None:
    """What looks like the comma before the first row of a range; None before the first and last."""
    if cut.fence is None or not 0 < number < len(cut.begins):
        return None
    at = data.find(cut.fence.mark, cut.begins[number])
    return None if at < 0 else at + cut.fence.comma


def _found(
    finder: Finder, file: BinaryIO, begin: int, end: int, out: BinaryIO, *, is_last: bool
) -> int:
    n_rows = 0
    for block in _blocks(file, begin, end):
        rows = finder.feed(block)
        out.write(rows.tobytes())
        n_rows += len(rows)
    if is_last:
        rows = finder.finish()
        out.write(rows.tobytes())
        n_rows += len(rows)
    return n_rows


def _blocks(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end:
        block = file.read(min(BLOCK_BYTES, end - begin))
        if not block:
            return
        begin += len(block)
        yield block


def put_together(task: tuple[Cut, tuple[int | None, ...]]) -> SourceScan:
    """The scan of a file whose ranges were scanned, without its digest.

    Where one was not proven, the file is scanned whole. Raises what `scan` raises.
    """
    cut, counts = task
    wanted = cut.wanted
    borders = wanted.spool.with_name(wanted.spool.name + ".rows")
    pieces = [cut.piece(number) for number in range(len(cut.begins))]
    is_proven = None not in counts
    if is_proven:
        with appear(borders) as out:
            for piece in pieces:
                with open(piece, "rb") as file:
                    shutil.copyfileobj(file, out, BLOCK_BYTES)
    for piece in pieces:
        piece.unlink(missing_ok=True)
    if not is_proven:
        return scan(wanted.path, name=wanted.name, spool=wanted.spool)
    with reading(wanted.path):
        check_unchanged(wanted.path, cut.stamp)
    return SourceScan(
        path=str(wanted.path),
        name=wanted.name,
        sha256="",
        n_bytes=wanted.path.stat().st_size,
        kind=cut.kind,
        n_rows=sum(n or 0 for n in counts),
        data=str(wanted.path),
        borders=str(borders),
        stamp=cut.stamp,
        spool=hashes_of([str(borders)]),
    )


def digest_of(path: str) -> str:
    """The sha256 of an input, as `scan` finds it. Raises what `scan` raises."""
    with reading(Path(path)), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digested(scan: SourceScan, sha256: str) -> SourceScan:
    """The scan with the digest that was found; raises BadInput when the input changed meanwhile."""
    check_unchanged(scan.path, scan.stamp)
    return replace(scan, sha256=sha256)
