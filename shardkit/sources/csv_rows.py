"""CSV and TSV: the first line names the columns, and each later row becomes a JSON line.

A row with more or fewer cells than there are names becomes a list of its cells, which no format
takes: it is rejected by name, as every broken row is. Blank lines are none, but in a file of one
column, where each is an empty cell: all but one at the end of the file.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import msgspec

from shardkit.errors import BadInput
from shardkit.format.atomic import appear

_KINDS = {".csv": ",", ".tsv": "\t"}
_CELL_CHARACTERS = 64 << 20
_INDEX = "Unnamed: 0"
"""What pandas calls the column of its index, which it writes without a name."""


def is_table(path: Path) -> bool:
    """Whether the file is called as CSV or TSV, compressed or not."""
    return _kind(path) is not None


def as_lines(path: Path, data: Path, digest: str | None, out: Path) -> tuple[Path, str]:
    """Write the rows as JSON lines; (that file, the sha256 of the input).

    `data`: the input, decompressed; `digest`: of the input, where it is known. Raises BadInput
    that names the line.
    """
    delimiter = _KINDS[_kind(path) or ".csv"]
    if digest is None:
        with open(data, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    with open(data, encoding="utf-8-sig", newline="") as text, appear(out) as lines:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for row in _rows(reader, path):
                lines.write(msgspec.json.encode(row) + b"\n")
        except (csv.Error, UnicodeDecodeError) as err:
            raise BadInput(
                f"this is no CSV: {err}",
                where=f"{path}, after line {reader.line_num}",
                expected="UTF-8, quoted with double quotes",
                fix="Mend the file there, or write it as JSONL.",
            ) from err
    return out, digest


def _rows(reader: csv._reader, path: Path) -> Iterator[object]:  # type: ignore[name-defined]
    csv.field_size_limit(_CELL_CHARACTERS)
    names: list[str] = next(reader, [])
    if names[1:] and not names[0]:
        names[0] = _INDEX
    if not names or len(set(names)) < len(names) or not all(names):
        raise BadInput(
            "the first line does not name the columns",
            where=str(path),
            found=", ".join(map(repr, names[:8])) or "an empty file",
            fix="Write the names of the columns, each once, into the first line.",
        )
    empty, n_empty = {names[0]: ""}, 0
    for cells in reader:
        if not cells:
            n_empty += len(names) == 1
            continue
        yield from repeat(empty, n_empty)
        n_empty = 0
        yield dict(zip(names, cells, strict=True)) if len(cells) == len(names) else cells
    yield from repeat(empty, n_empty - 1)


def _kind(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    return suffixes[-1] if suffixes and suffixes[-1] in _KINDS else None
