"""Options as keyword arguments, for type checkers alone; a test compares them with the fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from shardkit.format.recipe import Task
from shardkit.sources import Split
from shardkit.tokens.train_rules import History, Overlong, ToolCalls


class BuildArguments(TypedDict, total=False):
    """Who builds, for type checkers: the fields of BuildOptions and of every engine's options."""

    workers: int | Literal["auto"]
    build_engine: str
    ray_address: str | None


class AppendArguments(BuildArguments, total=False):
    """Keyword arguments of `append`, for type checkers: who builds, and AppendOptions' fields."""

    on_error: Literal["reject", "fail"]
    max_rejects: float | None
    exclude: Sequence[str] | None
    engine: str


class PackArguments(AppendArguments, total=False):
    """Keyword arguments of `pack`, for type checkers: `append`'s, and PackOptions' fields."""

    tokenizer: Any | None
    processor: Any | None
    max_pixels: int | None
    min_pixels: int | None
    processor_args: Mapping[str, Any] | None
    template: Any
    date: str | None
    source_format: str
    task: Task
    columns: Mapping[str, str] | None
    ignored_fields: Sequence[str] | None
    drop_duplicates: bool
    split: Split
    system: str | None
    max_length: int | None
    overlong: Overlong
    append_eos: bool
    packing: str
    pad_documents_to_multiple: int
    pack_scope: Literal["part", "all"]
    special_tokens_in_text: Literal["parse", "literal"]
    train_on: str
    history: History
    train_empty_think: bool
    tool_calls: ToolCalls
    fold_system: bool
    template_args: Mapping[str, Any] | None
    shuffle_seed: int | None
    shard_size: int
    compression: str
    image_root: str | Path | None
    image_size: int | None
    image_fit: Literal["pad", "crop", "resize"]
    store_max_pixels: int | None
    image_quality: int
    image_tokens: int
    image_token: int | str
    max_images: int | None
    part_rows: int | None
    part_bytes: int | None
    trust_remote_code: bool
