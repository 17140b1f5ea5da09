"""Rows of a scanned source as objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from mmap import ACCESS_READ, mmap

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Reason, Reject
from shardkit.sources.scan import SourceScan, borders_of
from shardkit.sources.tables import arrow_objects, parquet_objects

_decode = msgspec.json.Decoder().decode


def read_rows(scan: SourceScan, first: int, last: int) -> Iterator[tuple[int, object | Reject]]:
    """(row, object) of rows first to last - 1; a row that is no JSON gives a Reject."""
    yield from read_some(scan, np.arange(first, last))


def read_some(scan: SourceScan, rows: NDArray[np.int64]) -> Iterator[tuple[int, object | Reject]]:
    """(row, object) of any rows, in the order given."""
    if scan.borders is None:
        yield from _table_rows(scan, rows)
        return
    if not len(rows):
        return
    borders = borders_of(scan)[rows].astype(np.int64)
    with open(scan.data, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for row, (begin, end) in zip(rows.tolist(), borders.tolist(), strict=True):
            yield row, parse(data[begin:end])


def parse(text: bytes) -> object | Reject:
    """The JSON value of one row, or why it is none."""
    try:
        return _decode(text)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        return Reject(Reason.BAD_JSON, str(err))
    except RecursionError:
        return Reject(Reason.BAD_JSON, "nested too deeply")


def _table_rows(scan: SourceScan, rows: NDArray[np.int64]) -> Iterator[tuple[int, object | Reject]]:
    """Rows of a table, by runs of consecutive rows."""
    read: Callable[[str, int, int], Iterator[object]]
    read = arrow_objects if scan.kind == "arrow" else parquet_objects
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for begin, end in pairwise([0, *breaks.tolist(), len(rows)]):
        if end > begin:
            first, last = int(rows[begin]), int(rows[end - 1]) + 1
            yield from zip(range(first, last), read(scan.data, first, last), strict=True)
