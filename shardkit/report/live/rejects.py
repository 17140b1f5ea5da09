"""Lines of rejects.jsonl, a page at a time, by their place in the file."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from shardkit.dataset import Dataset

PAGE = 25
"""Lines of a page."""
MAX_BYTES = 64 << 20
"""Bytes of the file that one page looks at, at most."""


class RejectLine(msgspec.Struct, frozen=True):
    """A rejected row."""

    source: str
    row: int
    reason: str
    detail: str = ""


@dataclass(slots=True)
class Rejects:
    """One page of rejected rows."""

    lines: list[RejectLine] = field(default_factory=list)
    next: int | None = None
    """Where the next page begins, bytes; None at the end of the file."""


def read_rejects(dataset: Dataset, start: int, *, reason: str = "", source: str = "") -> Rejects:
    """The rejected rows from a byte of the file on, which is the beginning of a line."""
    found = Rejects()
    file = _open(dataset)
    if file is None:
        return found
    decode = msgspec.json.Decoder(RejectLine).decode
    with file:
        file.seek(start)
        while line := file.readline():
            try:
                one = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if reason in ("", one.reason) and source in ("", one.source):
                found.lines.append(one)
            if len(found.lines) == PAGE or file.tell() - start > MAX_BYTES:
                found.next = file.tell()
                break
        if found.next is not None and not file.readline():
            found.next = None
    return found


def _open(dataset: Dataset) -> BinaryIO | None:
    entry = dataset.manifest.rejects
    if entry is None:
        return None
    try:
        if dataset.is_local:
            return open(dataset.store.url(entry.name), "rb")
        return io.BytesIO(dataset.store.read(entry.name))
    except FileNotFoundError:
        return None
