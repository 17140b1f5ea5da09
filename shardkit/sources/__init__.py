"""Raw formats live here: files to rows, rows to conversations."""

from __future__ import annotations

from shardkit.sources.choose import Choice, choose
from shardkit.sources.format import OTHER_NAMES, SOURCES, Found, SourceFormat, detect, source_named
from shardkit.sources.inputs import expand_inputs, names_of
from shardkit.sources.record import ReadOptions, Unread, count_path
from shardkit.sources.rows import read_plain, read_rows, read_some
from shardkit.sources.scan import SourceScan, scan
from shardkit.sources.stamp import check_unchanged, stamp_of

__all__ = [
    "OTHER_NAMES",
    "SOURCES",
    "Choice",
    "Found",
    "ReadOptions",
    "SourceFormat",
    "SourceScan",
    "Unread",
    "check_unchanged",
    "choose",
    "count_path",
    "detect",
    "expand_inputs",
    "names_of",
    "read_plain",
    "read_rows",
    "read_some",
    "scan",
    "source_named",
    "stamp_of",
]
