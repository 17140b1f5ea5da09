"""Small datasets with known tokens, written straight through the format layer (no builder)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import load_manifest
from shardkit.format.atomic import appear
from shardkit.format.codec import parse_compression
from shardkit.format.layout import shard_name
from shardkit.format.manifest import (
    Manifest,
    PartEntry,
    SourceEntry,
    content_of,
    fingerprint_of,
)
from shardkit.format.samples import IGNORE_INDEX, SEGMENT_DTYPE, Samples, StoredImage
from shardkit.format.shard import ShardWriter

FIRST_ID = 1000
"""Sample k begins with the ids FIRST_ID + k // 10_000 and FIRST_ID + k % 10_000."""
PLACEHOLDER = -200


def make_recipe(*, packed: bool = False, images: bool = False, **changes: Any) -> dict[str, Any]:
    """A recipe as the builder writes it, with made-up hashes; `changes` replace fields."""
    special = {"bos": None, "eos": 1, "pad": 0, "unk": None}
    recipe: dict[str, Any] = {
        "source_format": "chat" if images else "alpaca",
        "tokenizer": {
            "sha256": "a" * 64,
            "probe_sha256": "b" * 64,
            "vocab_size": 40_000,
            "n_added_tokens": 3,
            "parts": {"model": "c" * 64},
            "special_ids": special,
            "chat_template_sha256": None,
        },
        "template": {"name": "qwen_chat", "text": "made up", "sha256": "d" * 64},
        "system": None,
        "max_length": 64,
        "truncation": "keep-head",
        "packing": "best-fit" if packed else "none",
        "special_tokens_in_text": "parse",
        "token_rows": ["input_ids", "labels"],
        "images": None,
    }
    if images:
        recipe["images"] = {
            "image_tokens": 4,
            "image_token": PLACEHOLDER,
            "image_size": None,
            "image_fit": None,
            "image_quality": None,
            "max_images": None,
            "processor": None,
        }
    return recipe | changes


def n_tokens_of(k: int) -> int:
    """Tokens of sample k: 3 to 40, scattered."""
    return 3 + (k * 2654435761 >> 7) % 38


def ids_of(k: int, length: int | None = None) -> NDArray[np.int32]:
    """The ids of sample k."""
    n = n_tokens_of(k) if length is None else length
    ids = FIRST_ID + (np.arange(n, dtype=np.int64) * 7 + k * 13) % 9000
    ids[0], ids[1] = FIRST_ID + k // 10_000, FIRST_ID + k % 10_000
    return ids.astype(np.int32)


def number_of(ids: Sequence[int]) -> int:
    """The sample k that begins with these ids."""
    return int(ids[0] - FIRST_ID) * 10_000 + int(ids[1] - FIRST_ID)


def make_image(k: int, size: tuple[int, int] = (12, 8)) -> StoredImage:
    """A small PNG of one colour that depends on k."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, (k % 251, k * 7 % 251, k * 31 % 251)).save(file, "PNG")
    return StoredImage(f"images/{k}.png", file.getvalue(), "png", *size)


def make_samples(
    first: int,
    n: int,
    *,
    packed: bool = False,
    n_images: Mapping[int, int] | None = None,
    lengths: Sequence[int] | None = None,
) -> Samples:
    """Samples first to first + n - 1. The first two labels are masked.

    `n_images`: images per sample number; each has a placeholder after the second id. Packed: the
    sample's tokens are divided into two segments when it has four tokens or more.
    """
    rows = []
    for k in range(first, first + n):
        row = ids_of(k, None if lengths is None else lengths[k - first])
        marks = np.full((n_images or {}).get(k, 0), PLACEHOLDER, np.int32)
        rows.append(np.concatenate([row[:2], marks, row[2:]]))
    ids = np.concatenate([np.zeros(0, np.int32), *rows])
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    labels = np.where(ids < 0, np.int32(IGNORE_INDEX), ids)
    labels[starts[:-1]] = IGNORE_INDEX
    labels[starts[:-1] + 1] = IGNORE_INDEX
    images = tuple(
        tuple(make_image(k * 10 + j) for j in range((n_images or {}).get(k, 0)))
        for k in range(first, first + n)
    )
    return Samples(
        ids=ids,
        labels=labels,
        starts=starts,
        source=np.zeros(n, np.uint32),
        record=np.arange(first, first + n, dtype=np.uint64),
        n_cut=np.zeros(n, np.uint32),
        images=images if n_images else (),
        row_ids=tuple((f"row-{k}",) for k in range(first, first + n)) if n_images else (),
        segments=_segments(rows, first) if packed else None,
    )


def _segments(rows: Sequence[NDArray[np.int32]], first: int) -> NDArray[np.void]:
    found = []
    for i, row in enumerate(rows):
        cut = len(row) // 2 if len(row) >= 4 else 0
        bounds = [0, cut, len(row)] if cut else [0, len(row)]
        for begin, end in pairwise(bounds):
            found.append((i, begin, end - begin, 0, first + i, 0, 0, 0, 0))
    return np.array(found, SEGMENT_DTYPE)


def make_dataset(
    path: Path,
    sizes: Sequence[int],
    *,
    packed: bool = False,
    n_images: Mapping[int, int] | None = None,
    lengths: Sequence[int] | None = None,
    compression: str = "none",
    name: str = "rows.json",
    recipe: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a dataset of shards with these sizes; sample k is record k, in order.

    `lengths`: tokens of each sample instead of `n_tokens_of`. Returns the manifest as it reads.
    """
    path.mkdir(parents=True, exist_ok=True)
    total = sum(sizes)
    digest = f"{sum(map(ord, name)):064x}"
    identity: dict[str, Any] = {
        "format": 1,
        "recipe": dict(recipe or make_recipe(packed=packed, images=bool(n_images))),
        "sources": [{"sha256": digest, "n_rows": total}],
        "layout": {"shard_size": 1 << 20, "part_rows": total, "part_bytes": 1 << 30},
        "shuffle_seed": None,
    }
    suffix = parse_compression(compression)[0].suffix
    entries, first = [], 0
    for number, size in enumerate(sizes):
        part = None if lengths is None else lengths[first : first + size]
        samples = make_samples(first, size, packed=packed, n_images=n_images, lengths=part)
        file = path / shard_name(number, suffix)
        with ShardWriter(file, recipe=identity["recipe"], compression=compression) as writer:
            writer.write(samples)
            entries.append(writer.close())
        first += size
    manifest = Manifest(
        fingerprint=fingerprint_of(identity),
        content=content_of(entries),
        identity=identity,
        writer="tests",
        engine="tests",
        sources=[SourceEntry(name=name, sha256=digest, n_bytes=0, n_rows=total, n_kept=total)],
        shards=entries,
        parts=[PartEntry(first_row=0, n_rows=total, first_shard=0, n_shards=len(sizes))],
    )
    with appear(path / "manifest.json") as out:
        out.write(manifest.to_bytes())
    return load_manifest(path)
