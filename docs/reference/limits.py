"""The rows of limits.md: each limit with its value in the code, what happens, and its option."""

from __future__ import annotations

import msgspec

from shardkit.builder.options import (
    PART_BYTES,
    PART_ROWS,
    PART_ROWS_WITH_IMAGES,
    SHARD_SIZE,
    PackOptions,
)
from shardkit.dataset import batches_ahead
from shardkit.format.layout import MAX_MEMBER_BYTES, MAX_SAMPLE_TOKENS, MAX_SHARD_SAMPLES
from shardkit.images.decode import MAX_EDGE, MAX_PIXELS
from shardkit.images.files import MAX_BYTES
from shardkit.loader.fetch import AHEAD_BYTES
from shardkit.loader.frames import CACHE_BYTES
from shardkit.loader.open_shards import MAX_OPENED
from shardkit.sources.nesting import MAX_NESTING
from shardkit.sources.rows import MAX_ROW_BYTES
from shardkit.sources.tables import BATCH_ROWS, KEPT_GROUP
from shardkit.storage.retry import DEFAULT_TIMEOUT_S, DEFAULT_TRIES
from shardkit.tokens.sandbox import MAX_BITS, MAX_OUTPUT

Row = tuple[str, str, str, str]
"""What is limited, the limit, what happens beyond it, the option that moves it."""


def _bytes(n: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n >= 1 << shift:
            rest = n % (1 << shift)
            return f"{n >> shift:,} {unit}" if not rest else f"{n / (1 << shift):,.1f} {unit}"
    return f"{n:,} bytes"


_DEFAULT = next(f.default for f in msgspec.structs.fields(PackOptions) if f.name == "max_rejects")
_MAX_REJECTS = "none" if _DEFAULT is None else f"{_DEFAULT:.0%} of all rows"

LIMITS: dict[str, list[Row]] = {
    "Rows": [
        (
            "tokens of a row",
            "what `--max-length` says; without it none",
            "what is longer is cut or rejected",
            "`--max-length`",
        ),
        (
            "bytes of a row, as text in the file",
            _bytes(MAX_ROW_BYTES),
            "`bad_record`; the row is not read",
            "none",
        ),
        (
            "objects and lists inside one another",
            f"{MAX_NESTING} levels",
            "`bad_json`",
            "none",
        ),
        ("tokens of a sample", f"{MAX_SAMPLE_TOKENS:,}", "the format cannot hold it", "none"),
        (
            "rejected rows",
            _MAX_REJECTS,
            "the pack fails before it is committed, and names the reasons",
            "`--max-rejects`",
        ),
    ],
    "Pictures": [
        ("bytes of a picture file", _bytes(MAX_BYTES), "`image_too_large`", "none"),
        ("pixels of a picture", f"{MAX_PIXELS:,}", "`image_too_large`", "none"),
        ("edge of a picture", f"{MAX_EDGE:,} pixels", "`image_too_large`", "none"),
        (
            "pictures of a row, and of a pack",
            "none",
            "the row is rejected, the pack ends before it",
            "`--max-images`",
        ),
    ],
    "Templates": [
        (
            "characters printed of a row; elements of a text or list made by `+` or `*`",
            f"{MAX_OUTPUT:,}",
            "`template_failed`",
            "none",
        ),
        ("bits of a whole number", f"{MAX_BITS:,}", "`template_failed`", "none"),
        ("`range()`", "100,000 (Jinja's sandbox)", "`template_failed`", "none"),
        ("time", "none", "a template that loops without end hangs the pack", "none"),
        (
            "what filters and `~` make",
            "none",
            "a hostile template can still take much memory: use those that you trust",
            "none",
        ),
    ],
    "Files that are packed": [
        (
            "what a part holds in memory",
            f"{PART_ROWS:,} rows ({PART_ROWS_WITH_IMAGES:,} with pictures), about "
            f"{_bytes(PART_BYTES)} of source text",
            "the next part begins",
            "`--part-rows`; in Python `part_bytes`",
        ),
        (
            "a Parquet row group that is kept in memory between parts",
            f"{_bytes(KEPT_GROUP)} uncompressed",
            f"it is read {BATCH_ROWS:,} rows at a time",
            "none",
        ),
        (
            "what `.gz` and `.zst` files unpack to",
            "the disk of the output folder",
            "the pack stops: the disk is full",
            "`--work-dir` for a URL",
        ),
    ],
    "Shards": [
        ("bytes of a shard, about", _bytes(SHARD_SIZE), "the next shard begins", "`--shard-size`"),
        ("samples of a shard", f"{MAX_SHARD_SAMPLES:,}", "the format cannot hold it", "none"),
        ("bytes of a member", f"{MAX_MEMBER_BYTES:,}", "ustar cannot hold it", "none"),
    ],
    "Reading": [
        (
            "batches made ahead",
            f"{batches_ahead(is_large=False)}; "
            f"{batches_ahead(is_large=True)} of packs and pictures",
            "the thread waits",
            "`prefetch`",
        ),
        ("shards kept open", f"{MAX_OPENED:,}", "the one used longest ago is closed", "none"),
        ("frames of zstd kept", _bytes(CACHE_BYTES), "the oldest is dropped", "none"),
        (
            "fetched ahead of a remote dataset",
            f"2 to 8 shards, about {_bytes(AHEAD_BYTES)}",
            "fetching waits",
            "`fetch_ahead`",
        ),
        (
            "the cache on a node",
            "the disk",
            "shards that were not used for longest are evicted",
            "`cache_limit`, `SHARDKIT_CACHE_LIMIT`",
        ),
        (
            "tries of a request",
            f"{DEFAULT_TRIES}",
            "StorageError, which names the URL",
            "`SHARDKIT_TRIES`",
        ),
        (
            "seconds without an answer",
            f"{DEFAULT_TIMEOUT_S:g}",
            "the request is tried again",
            "`SHARDKIT_TIMEOUT`",
        ),
    ],
}
