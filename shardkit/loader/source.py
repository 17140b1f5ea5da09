"""One dataset as the loader knows it: where it is, its manifest, and what it must agree with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset, StorageOptions, open_dataset
from shardkit.errors import CorruptShard, MissingShard
from shardkit.format.manifest import ShardEntry
from shardkit.loader.identity import Expected, refuse_other

_RESTORE = "Copy it back, or rebuild it: shardkit repair DATASET --source FILE ..."


@dataclass(frozen=True)
class Source(Dataset):
    """A dataset that was accepted."""

    fetch_ahead: int | None = None
    """Shards of a remote one that are fetched before they are needed."""

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n_shards,) samples of each shard."""
        return self.manifest.sizes

    @property
    def image_recipe(self) -> Mapping[str, Any] | None:
        """How images were packed; None when the dataset has none."""
        images: Mapping[str, Any] | None = self.manifest.recipe.get("images")
        return images

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's padding id, else its EOS id, else 0."""
        special = self.manifest.recipe.get("tokenizer", {}).get("special_ids", {})
        found = (special.get(name) for name in ("pad", "eos"))
        return next((int(value) for value in found if value is not None), 0)

    def check_present(self, shards: NDArray[np.int64]) -> None:
        """Look that these shards are there, with the right size; nothing is read.

        Raises MissingShard or CorruptShard. Does nothing for a remote dataset.
        """
        if not self.is_local:
            return
        entries = [self.manifest.shards[number] for number in shards.tolist()]
        for entry, n_bytes in zip(entries, _sizes_of(self.root, entries), strict=True):
            if n_bytes != entry.n_bytes:
                raise _unlike(entry, n_bytes, os.path.join(self.root, entry.name))


def _sizes_of(folder: str, entries: Sequence[ShardEntry]) -> Iterator[int | None]:
    """Bytes of these files; None of one that is not there."""
    try:
        inside = os.open(folder, os.O_RDONLY)  # paths are shorter from here
    except (FileNotFoundError, NotADirectoryError):
        yield from [None] * len(entries)
        return
    try:
        for entry in entries:
            try:
                yield os.stat(entry.name, dir_fd=inside).st_size
            except FileNotFoundError:
                yield None
    finally:
        os.close(inside)


def _unlike(entry: ShardEntry, n_bytes: int | None, path: str) -> MissingShard | CorruptShard:
    if n_bytes is None:
        return MissingShard("the shard is not there", where=path, fix=_RESTORE)
    return CorruptShard(
        "the file has the wrong size",
        where=path,
        expected=f"{entry.n_bytes} bytes",
        found=f"{n_bytes} bytes",
        fix=_RESTORE,
    )


def open_source(
    path: str | Path,
    expected: Expected,
    *,
    fetch_ahead: int | None = None,
    **options: Unpack[StorageOptions],
) -> Source:
    """The dataset at a path or URL, its folder or its manifest.json.

    Raises BadManifest, UnsupportedVersion, StorageError, and IdentityMismatch when it was packed
    with something else than `expected`.
    """
    dataset = open_dataset(path, **options)
    refuse_other(dataset, expected)
    return Source(dataset.manifest, dataset.store, fetch_ahead)
