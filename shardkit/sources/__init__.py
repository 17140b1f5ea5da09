"""Raw formats live here: files to rows, rows to conversations.

    inputs ► scan (digest, borders) ► rows (objects) ► source_format ► Conversation, or Reject
             json_rows, tables, tars, plain_rows: the  alpaca, chat, text, tokenized, ...
             csv_rows                 quick way

Read `source_format`, where a new format goes, with `record` and `fields`, through which a format
reads; `text`, the shortest format, then `chat` with `turns`, `content` and `pictures`. `choose`
detects a format; `stamp` tells that a file changed; `unread_keys` refuses keys that nobody may
read over.

Around them: which files are meant (`inputs`, `splits`, `stray`, `copies` of stdin and URLs), their
rows (`ranges` and `json_rows_fast` for large JSON, `nesting`, `cells` of tables, `spooled` between
runs, `duplicates`), and what chats have besides turns (`columns` of questions and answers,
`row_fields`, `tool_calls`, `preference`); `webdataset` is rows of tars.
"""

from __future__ import annotations

from shardkit.sources.choose import Choice, choose
from shardkit.sources.copies import Copies
from shardkit.sources.duplicates import duplicates_of, mark_duplicates
from shardkit.sources.inputs import Inputs, expand_inputs, find_again, find_inputs, names_of
from shardkit.sources.record import ReadOptions, Unread, count_path
from shardkit.sources.rows import read_plain, read_rows, read_some
from shardkit.sources.scan import SourceScan, scan
from shardkit.sources.source_format import (
    OTHER_NAMES,
    SOURCES,
    Found,
    SourceFormat,
    detect,
    source_named,
)
from shardkit.sources.splits import Split
from shardkit.sources.spooled import are_whole
from shardkit.sources.stamp import check_unchanged, stamp_of

__all__ = [
    "OTHER_NAMES",
    "SOURCES",
    "Choice",
    "Copies",
    "Found",
    "Inputs",
    "ReadOptions",
    "SourceFormat",
    "SourceScan",
    "Split",
    "Unread",
    "are_whole",
    "check_unchanged",
    "choose",
    "count_path",
    "detect",
    "duplicates_of",
    "expand_inputs",
    "find_again",
    "find_inputs",
    "mark_duplicates",
    "names_of",
    "read_plain",
    "read_rows",
    "read_some",
    "scan",
    "source_named",
    "stamp_of",
]
