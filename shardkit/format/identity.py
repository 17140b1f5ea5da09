"""The identity of a dataset, field by field: what every reader may rely on (docs/format.md, 11.2).

Only the forms are checked here, once, when a manifest is read. A field that is not listed here is
let be: it is an option's that only a packer asks for, or of a later version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from shardkit.errors import BadManifest

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0)]


class _Tokenizer(msgspec.Struct):
    sha256: str
    probe_sha256: str
    vocab_size: Natural
    n_added_tokens: Natural
    parts: dict[str, str]
    special_ids: dict[str, Natural | None]
    chat_template_sha256: str | None


class _Template(msgspec.Struct):
    name: str
    text: str
    sha256: str
    date: str | None = None
    args: dict[str, Any] | None = None


class _Processor(msgspec.Struct):
    family: str
    settings: dict[str, Any]
    sha256: str
    probe: list[tuple[Natural, Natural, Natural]]


class _Images(msgspec.Struct):
    image_tokens: Natural | None
    image_token: int | None
    image_size: Natural | None
    image_fit: str | None
    image_quality: Natural | None
    max_images: Natural | None
    processor: _Processor | None
    in_rows: bool = False


class _Recipe(msgspec.Struct):
    source_format: str
    tokenizer: _Tokenizer
    template: _Template
    system: str | None
    max_length: Natural | None
    truncation: str
    packing: str
    special_tokens_in_text: str
    token_rows: list[str]
    images: _Images | None
    task: str = ""
    map: dict[str, Any] = {}
    history: str = ""
    train_on: str = ""
    overlong: str = ""
    tool_calls: str = ""
    append_eos: bool = False
    train_empty_think: bool = False
    fold_system: bool = False
    drop_duplicates: bool = False
    ignore_fields: list[str] = []
    rows_cut_at: Natural | None = None


class _Source(msgspec.Struct):
    sha256: str
    n_rows: Natural


class _Layout(msgspec.Struct):
    shard_size: Natural
    part_rows: Natural
    part_bytes: Natural
    scope: str = ""


class _Build(msgspec.Struct):
    sources: list[_Source]
    layout: _Layout
    shuffle_seed: Seed | None


class _Joined(msgspec.Struct):
    format: Natural
    recipe: _Recipe
    builds: list[_Build]


class _Single(_Build):
    format: Natural
    recipe: _Recipe


def check_identity(identity: Mapping[str, Any], where: str) -> None:
    """Raise BadManifest, naming the field, when an identity is not as the format says."""
    try:
        msgspec.convert(identity, _Joined if "builds" in identity else _Single)
    except msgspec.ValidationError as err:
        raise BadManifest(
            f"not as the format says: {err}",
            where=f"{where}: $.identity",
            fix="The manifest was not written by shardkit: pack the dataset again.",
        ) from err
