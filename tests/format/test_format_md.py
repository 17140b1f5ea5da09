"""docs/format.md is the specification: its tables are compared with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from shardkit.format.canonical import canonical_json
from shardkit.format.layout import INDEX_DTYPE
from shardkit.format.samples import SEGMENT_DTYPE
from shardkit.format.tar import headers

TEXT = (Path(__file__).resolve().parents[2] / "docs/format.md").read_text()


def rows_of(section: str) -> list[list[str]]:
    body = TEXT.split(f"\n### {section}\n")[1].split("\n#")[0]
    lines = [line for line in body.splitlines() if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("section", "dtype"), [("6.2 `index`", INDEX_DTYPE), ("6.3 `segments`", SEGMENT_DTYPE)]
)
def test_array_tables_are_the_dtypes(section: str, dtype: np.dtype[np.void]) -> None:
    """Every column of index and segments stands in the document with its place and type."""
    rows = rows_of(section)
    assert dtype.fields is not None
    assert [row[3] for row in rows] == list(dtype.names or ())
    for offset, size, kind, name, *_ in rows:
        field, place = dtype.fields[name][:2]
        assert (int(offset), int(size), f"<{kind}") == (place, field.itemsize, field.str)


def test_the_header_table_is_the_header() -> None:
    """Fixed fields of the tar header are the bytes that the document gives."""
    block = headers(np.array([b"x"], "S100"), np.array([0])).tobytes()
    body = TEXT.split("\n## 5. A shard\n")[1]
    for line in body.splitlines():
        found = re.match(r"\| (\d+) \| (\d+) \| \w[^|]* \| (`[^|]*`) \|", line)
        if found:
            offset, size, value = int(found[1]), int(found[2]), found[3]
            wanted = value.replace("`", "").replace(" ", "").replace("\\0", "\0").encode()
            assert block[offset : offset + size] == wanted.ljust(size, b"\0")


def test_canonical_json_is_that_of_python() -> None:
    """Keys by code point, no spaces, UTF-8 as it is, control characters escaped."""
    value = {"b": [1, -2, None, True], "a": 'é\n\x01"\\/', "Z": {"é": 1, "z": 2, "𝔘": 3, "": ""}}
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical_json(value) == expected.encode()
