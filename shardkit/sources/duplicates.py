"""Which rows say again what an earlier row said: decided once, before any part is built.

Two rows are the same when their canonical JSON is: keys sorted, numbers and texts as they are, so
also the names (or bytes) of their pictures. The first one, in the order of the inputs, is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.conversation import Reject
from shardkit.format.atomic import appear
from shardkit.sources.rows import read_rows
from shardkit.sources.scan import SourceScan
from shardkit.sources.spooled import hashes_of

_BLOCK_ROWS = 4096
DUPLICATE_DTYPE = np.dtype([("row", "<u8"), ("first_source", "<u4"), ("first_row", "<u8")])
"""A row that is left out, and where the same row stands that is kept."""
_encode = msgspec.json.Encoder(order="sorted").encode


def mark_duplicates(scans: Sequence[SourceScan], folder: Path) -> tuple[SourceScan, ...]:
    """The scans, each with a file in `folder` that lists its rows which stand earlier already.

    Memory: about 100 bytes a row while it is decided.

    Files of 3 and 2 rows: ends [3, 5], starts [0, 3], so row 4 of all is row 1 of file 1.
    """
    if all(scan.duplicates and Path(scan.duplicates).is_file() for scan in scans):
        return tuple(scans)
    n_rows = np.array([scan.n_rows for scan in scans], np.int64)
    digests = np.concatenate([_digests(scan) for scan in scans])
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    kept = first[group.reshape(-1)]
    again = np.flatnonzero(kept != np.arange(len(kept)))
    ends = np.cumsum(n_rows)
    starts = ends - n_rows
    marked = []
    for number, scan in enumerate(scans):
        mine = again[(again >= starts[number]) & (again < ends[number])]
        found = np.zeros(len(mine), DUPLICATE_DTYPE)
        found["row"] = mine - starts[number]
        found["first_source"] = np.searchsorted(ends, kept[mine], side="right")
        found["first_row"] = kept[mine] - starts[found["first_source"]]
        path = folder / f"duplicates-{number:05d}"
        with appear(path) as file:
            file.write(found.tobytes())
        spool = (*scan.spool, *hashes_of([str(path)]))
        marked.append(replace(scan, duplicates=str(path), spool=spool))
    return tuple(marked)


def _digests(scan: SourceScan) -> NDArray[np.void]:
    """(n_rows,) 128-bit digests; a row that is no JSON is like no other."""
    found = np.zeros(scan.n_rows, np.dtype([("low", "<u8"), ("high", "<u8")]))
    for begin in range(0, scan.n_rows, _BLOCK_ROWS):
        rows = read_rows(scan, begin, min(begin + _BLOCK_ROWS, scan.n_rows))
        texts = (
            f"{scan.path}:{begin + i}".encode() if isinstance(row, Reject) else _encode(row)
            for i, row in enumerate(rows)
        )
        data = b"".join(xxhash.xxh3_128_digest(text) for text in texts)
        found[begin : begin + len(rows)] = np.frombuffer(data, found.dtype)
    return found


def duplicates_of(scan: SourceScan, rows: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """The repeated ones of these rows: position among them -> (source, row) that is kept."""
    if scan.duplicates is None:
        return {}
    known = np.fromfile(scan.duplicates, DUPLICATE_DTYPE)
    at = np.searchsorted(known["row"], rows.astype(np.uint64))
    is_inside = at < len(known)
    is_again = np.zeros(len(rows), bool)
    is_again[is_inside] = known["row"][at[is_inside]] == rows[is_inside]
    return {
        position: (int(known["first_source"][at[position]]), int(known["first_row"][at[position]]))
        for position in np.flatnonzero(is_again).tolist()
    }
