"""What a reader must find in a golden dataset, whatever version of shardkit it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from shardkit import ShardLoader
from shardkit.dataset import open_dataset

_OF_SEGMENT = ("sample", "start", "length", "source", "record", "piece")


def facts_of(folder: Path) -> dict[str, Any]:
    """Identity, ledger, every token and picture as digests, and the order of a seeded epoch."""
    dataset = open_dataset(folder)
    manifest = dataset.manifest
    tokens, pictures, spans = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    first: list[list[int]] = []
    for number in range(len(manifest.shards)):
        shard = dataset.open_shard(number)
        for i in range(shard.n_samples):
            rows = np.ascontiguousarray(shard.tokens(i)[:2], "<i4")
            first = first or rows.tolist()
            tokens.update(rows.tobytes())
            for image in shard.images(i):
                pictures.update(image)
        if shard.segments is not None:
            for name in _OF_SEGMENT:
                spans.update(np.ascontiguousarray(shard.segments[name], "<i8").tobytes())
        shard.close()
    return {
        "fingerprint": manifest.fingerprint,
        "content": manifest.content,
        "n_samples": manifest.n_samples,
        "n_tokens": manifest.n_tokens,
        "n_supervised": manifest.n_supervised,
        "n_images": manifest.n_images,
        "sources": [
            {"name": source.name, "kept": source.n_kept, "rejected": dict(source.rejected)}
            for source in manifest.sources
        ],
        "tokens": tokens.hexdigest(),
        "pictures": pictures.hexdigest(),
        "segments": spans.hexdigest(),
        "first_sample": first,
        "epoch": epoch_of(folder),
    }


def epoch_of(folder: Path) -> list[list[str]]:
    """The keys of each batch of two ranks, seed 7, epoch 3."""
    batches: list[list[str]] = []
    for rank in range(2):
        loader = ShardLoader(
            folder, batch_size=2, seed=7, rank=rank, world_size=2, sample_keys=True
        )
        loader.set_epoch(3)
        batches += [[str(key) for key in batch["keys"]] for batch in loader]
    return batches
