"""Files beside data that hold no rows: one JSON object alone, such as meta.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

MOST_BYTES = 16 << 20
"""A larger file is looked at by the scan, whatever it holds."""


def is_stray(path: Path) -> bool:
    """Whether a .json file is one object that is no row: over several lines, or of no format."""
    from shardkit.sources.source_format import SOURCES

    if path.suffix != ".json" or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return False
    with open(path, "rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not head.startswith(b"{"):
            return False
        file.seek(0)
        text = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        record = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # JSONL, or something broken: the scan says what
    is_one_line = b"\n" not in text.strip()
    return not (is_one_line and any(source.looks_like(record) for source in SOURCES.values()))
