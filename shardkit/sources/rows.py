"""Rows of a scanned source as objects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Reason, Reject
from shardkit.sources.cells import Dropped
from shardkit.sources.json_value import NOT_JSON, parse
from shardkit.sources.nesting import has_deep_row
from shardkit.sources.plain_rows import PlainRows
from shardkit.sources.scan import SourceScan, borders_of, damaged
from shardkit.sources.stamp import changed
from shardkit.sources.tables import arrow_objects, parquet_objects
from shardkit.sources.tars import sample_of

_decoder = msgspec.json.Decoder()
_decode = _decoder.decode
MAX_ROW_BYTES = 64 << 20
"""A longer row is rejected unread: as objects it would take many times as much memory."""


def read_rows(scan: SourceScan, first: int, last: int) -> list[object | Reject]:
    """The objects of rows first to last - 1; a row that is no JSON gives a Reject."""
    return read_some(scan, np.arange(first, last))


def read_some(
    scan: SourceScan, rows: NDArray[np.int64], dropped: Dropped | None = None
) -> list[object | Reject]:
    """The objects of any rows, in the order given; a row that is none gives a Reject.

    `dropped` counts members of tables' structs that are left out (see cells.py). Raises BadInput
    when the file has become shorter, or a table cannot be read.
    """
    if not len(rows):
        return []
    if scan.borders is None:
        return list(_table_rows(scan, rows, dropped))
    borders = borders_of(scan)[rows].astype(np.int64)
    with _opened(scan) as data:
        if scan.kind == "tar":
            return [_at(data, begin, end, sample_of) for begin, end in borders.tolist()]
        if len(rows) > 1 and _is_run(rows) and not _has_long_row(borders):
            found = _parse_run(data[borders[0, 0] : borders[-1, 1]], scan, borders)
            if found is not None:
                return found
        return [_at(data, begin, end, parse) for begin, end in borders.tolist()]


def read_plain(
    scan: SourceScan, rows: NDArray[np.int64], plain: PlainRows
) -> list[msgspec.Struct] | None:
    """Rows that follow each other, decoded as `plain` says; None when one has another shape."""
    if scan.borders is None or scan.kind == "tar" or not len(rows) or not _is_run(rows):
        return None
    borders = borders_of(scan)[rows].astype(np.int64)
    if _has_long_row(borders):
        return None
    with _opened(scan) as data:
        text = data[borders[0, 0] : borders[-1, 1]]
    if has_deep_row(text, borders):
        return None
    try:
        if scan.kind == "array":
            found = plain.of_array.decode(b"[" + text + b"]")
        elif _are_objects(text, borders):
            found = plain.of_lines.decode_lines(text)
        else:
            return None
    except NOT_JSON:
        return None
    return found if len(found) == len(rows) else None


def _has_long_row(borders: NDArray[np.int64]) -> bool:
    return bool((borders[:, 1] - borders[:, 0]).max(initial=0) > MAX_ROW_BYTES)


def _is_run(rows: NDArray[np.int64]) -> bool:
    return bool(np.all(np.diff(rows) == 1))


@contextmanager
def _opened(scan: SourceScan) -> Iterator[_Slices]:
    """The file that the borders speak of."""
    with open(scan.data, "rb") as file:
        yield _Slices(file.fileno(), scan.path)


class _Slices:
    """An open file that is read by slices, as bytes are.

    Not mapped: a mapped file that somebody cuts short kills the process (SIGBUS).
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor, self._path = descriptor, path

    def __getitem__(self, bytes_: slice) -> bytes:
        start, end = int(bytes_.start), int(bytes_.stop)
        data = os.pread(self._descriptor, end - start, start)
        while len(data) < end - start:  # more than 2 GiB, or the file has become shorter
            more = os.pread(self._descriptor, end - start - len(data), start + len(data))
            if not more:
                raise changed(self._path)
            data += more
        return data


def _parse_run(
    text: bytes, scan: SourceScan, borders: NDArray[np.int64]
) -> list[object | Reject] | None:
    """Rows that follow each other, parsed in one call; None when one of them is not JSON."""
    if has_deep_row(text, borders):
        return None
    try:
        if scan.kind == "array":
            found = _decode(b"[" + text + b"]")
        elif _are_objects(text, borders):
            found = _decoder.decode_lines(text)
        else:
            return None
    except NOT_JSON:
        return None
    return found if len(found) == len(borders) else None


def _are_objects(text: bytes, borders: NDArray[np.int64]) -> bool:
    """Whether each of these lines begins with { and ends with }.

    As many values as such lines are one value a line: a line break is never inside a string, and
    an object that goes on in the next line cannot have a } before the break and a { behind it.
    """
    data = np.frombuffer(text, np.uint8)
    begins, ends = (borders - borders[0, 0]).T
    return bool((data[begins] == ord("{")).all() and (data[ends - 1] == ord("}")).all())


def _at(
    data: _Slices, begin: int, end: int, parse_row: Callable[[bytes], object | Reject]
) -> object | Reject:
    """One row; a reason to reject also says where in the file the row begins."""
    if end - begin > MAX_ROW_BYTES:
        detail = f"a row of {end - begin:,} bytes; at most {MAX_ROW_BYTES:,} are read"
        return Reject(Reason.BAD_RECORD, f"{detail}, in the row that begins at byte {begin}")
    text = data[begin:end]
    found = parse_row(text)
    if not isinstance(found, Reject):
        return found
    begin += len(text) - len(text.lstrip())
    return Reject(found.reason, f"{found.detail}, in the row that begins at byte {begin}")


def _table_rows(
    scan: SourceScan, rows: NDArray[np.int64], dropped: Dropped | None
) -> Iterator[object]:
    """Rows of a table, by runs of consecutive rows.

    Rows [3, 4, 9]: a break at 2, so the runs are 0:2 and 2:3.
    """
    read: Callable[[str, int, int, Dropped | None], Iterator[object]]
    read = arrow_objects if scan.kind == "arrow" else parquet_objects
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for begin, end in pairwise([0, *breaks.tolist(), len(rows)]):
        if end > begin:
            first, last = int(rows[begin]), int(rows[end - 1]) + 1
            try:
                yield from read(scan.data, first, last, dropped)
            except (OSError, ValueError, LookupError, TypeError) as err:
                raise damaged(scan.path, err) from err
