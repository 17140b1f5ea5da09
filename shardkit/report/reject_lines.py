"""Lines of rejects.jsonl, read for people: a line that is none is passed over."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from shardkit.dataset import Dataset


class RejectLine(msgspec.Struct, frozen=True):
    """A rejected row."""

    source: str
    row: int
    reason: str
    detail: str = ""


def open_rejects(dataset: Dataset) -> BinaryIO | None:
    """The list of rejected rows; None where the dataset has none, or it is gone."""
    entry = dataset.manifest.rejects
    if entry is None:
        return None
    try:
        if dataset.is_local:
            return open(dataset.store.url(entry.name), "rb")
        return io.BytesIO(dataset.store.read(entry.name))
    except FileNotFoundError:
        return None


def lines_of(file: BinaryIO) -> Iterator[tuple[RejectLine | None, int]]:
    """Each line from here on, None where it is no rejected row, and where the next one begins."""
    decode = msgspec.json.Decoder(RejectLine).decode
    while line := file.readline():
        try:
            yield decode(line), file.tell()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield None, file.tell()
