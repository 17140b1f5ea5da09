"""Raw formats live here: files to rows, rows to conversations."""

from __future__ import annotations

from shardkit.sources.format import SOURCES, SourceFormat, detect, source_named
from shardkit.sources.inputs import expand_inputs, names_of
from shardkit.sources.record import ReadOptions, Unread
from shardkit.sources.rows import read_plain, read_rows, read_some
from shardkit.sources.scan import SourceScan, scan

__all__ = [
    "SOURCES",
    "ReadOptions",
    "SourceFormat",
    "SourceScan",
    "Unread",
    "detect",
    "expand_inputs",
    "names_of",
    "read_plain",
    "read_rows",
    "read_some",
    "scan",
    "source_named",
]
