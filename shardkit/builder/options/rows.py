"""Options of rows, shards and parts; first those that an append may choose anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from shardkit.builder.options.kept import (
    LAYOUT,
    RECIPE,
    RECIPE_IF_GIVEN,
    ROWS,
    RUNNING,
    Kept,
)
from shardkit.builder.options.values import are_columns, columns_of, names_of_list
from shardkit.errors import UsageError
from shardkit.format.codec import compression_choices, parse_compression
from shardkit.format.recipe import SFT, Task
from shardkit.options import Fits, Flag, OneOf, Positive
from shardkit.sources import OTHER_NAMES, SOURCES, Split
from shardkit.tokens import ENGINES as TOKEN_ENGINES
from shardkit.units import rows_or_share, size_of

SHARD_SIZE = 64 << 20
"""Bytes of a shard, about, before compression."""

_SOURCE_FORMATS = OneOf(lambda: ("auto", *SOURCES, *OTHER_NAMES))
_TOKENIZER_ENGINES = OneOf(lambda: ("auto", *TOKEN_ENGINES))


MaxRejects = Annotated[
    float,
    Fits("a whole number of rows, or a share below 1", lambda n: n >= 0 and (n < 1 or n % 1 == 0)),
]


def _is_compression(text: str) -> bool:
    try:
        parse_compression(text)
    except UsageError:
        return False
    return True


Compression = Annotated[str, Fits(compression_choices(), _is_compression)]
"""A codec with its level, as zstd:3."""


class AppendOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options that an append may choose anew: they decide no bytes of a row that is kept."""

    on_error: Annotated[
        Literal["reject", "fail"],
        Flag("what a bad row does: it is listed (default), or it stops the run", group=ROWS),
    ] = "reject"
    max_rejects: Annotated[
        MaxRejects | None,
        Flag(
            "fail above N rows, or above a share of them: 0.01 or 1%% (default: 0.5)",
            "N",
            ROWS,
            parse=rows_or_share,
        ),
    ] = 0.5
    """A count, or a share of all rows when below 1; None: no limit."""
    exclude: Annotated[
        Sequence[str] | None,
        Flag(
            "leave these files of folders and globs out, as 'meta*.json'",
            "GLOB,...",
            ROWS,
            parse=names_of_list,
        ),
    ] = None
    engine: Annotated[
        str,
        _TOKENIZER_ENGINES,
        Flag(
            "auto takes a fast engine only where its ids agree (default)",
            group=RUNNING,
            name="--tokenizer-engine",
        ),
    ] = "auto"


class RowOptions(AppendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which rows are read, and how large shards and parts are."""

    source_format: Annotated[
        str,
        _SOURCE_FORMATS,
        Flag("which fields the rows have (default: auto, from the first rows)", name="--format"),
        RECIPE,
    ] = "auto"
    task: Annotated[
        Task,
        Flag(
            "sft (default); preference: rows of a chosen and a rejected answer (DPO); kto: rows "
            "of one answer with a label",
            group=ROWS,
        ),
        RECIPE_IF_GIVEN,
    ] = SFT
    """What the rows are for."""
    columns: Annotated[
        Mapping[str, str] | None,
        Fits("names of fields, each with the name of the file's column", are_columns),
        Flag(
            "which columns the rows have for our fields, as question=prompt,answer=completion",
            "OURS=THEIRS,...",
            ROWS,
            name="--map",
            parse=columns_of,
        ),
        RECIPE_IF_GIVEN,
    ] = None
    """Our name of a field -> the name that the records have for it."""
    ignored_fields: Annotated[
        Sequence[str] | None,
        Flag(
            "drop these keys of records, although they may change the meaning",
            "NAME,...",
            ROWS,
            name="--ignore-field",
            parse=names_of_list,
        ),
        RECIPE_IF_GIVEN,
    ] = None
    drop_duplicates: Annotated[
        bool,
        Flag("reject a row that is, with its images, the same as an earlier one", group=ROWS),
        RECIPE_IF_GIVEN,
    ] = False
    split: Annotated[
        Split,
        Flag(
            "which files of a folder: train (default) leaves out test and validation files that "
            "lie beside others",
            group=ROWS,
        ),
    ] = "train"
    shuffle_seed: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=2**64 - 1)] | None,
        Flag("shuffle all rows first", "N", ROWS),
        Kept("identity"),
    ] = None
    shard_size: Annotated[
        Positive,
        Flag("of a shard: 64M (the default), 200MB, 1GiB", "SIZE", ROWS, parse=size_of),
        LAYOUT,
    ] = SHARD_SIZE
    compression: Annotated[Compression, Flag(compression_choices(), "CODEC", ROWS)] = "none"
    part_rows: Annotated[Positive | None, Flag("rows of a part, at most", "N", ROWS), LAYOUT] = None
    part_bytes: Annotated[Positive | None, LAYOUT] = None
