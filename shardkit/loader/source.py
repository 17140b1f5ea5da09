"""One dataset as the loader knows it: where it is, its manifest, and what it must agree with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
        found = _sizes_of(self.root, [entry.name for entry in entries])
        if found != [entry.n_bytes for entry in entries]:
            pairs = zip(entries, found, strict=True)
            entry, n_bytes = next(pair for pair in pairs if pair[0].n_bytes != pair[1])
            raise _unlike(entry, n_bytes, os.path.join(self.root, entry.name))


def _sizes_of(folder: str, names: Sequence[str]) -> list[int | None]:
    """Bytes of these files; None for one that is not there."""
    try:
        inside = os.open(folder, os.O_RDONLY)  # paths from here are shorter
    except (FileNotFoundError, NotADirectoryError):
        return [None] * len(names)
    try:
        return [os.stat(name, dir_fd=inside).st_size for name in names]
    except FileNotFoundError:
        return [_size_of(name, inside) for name in names]
    finally:
        os.close(inside)


def _size_of(name: str, inside: int) -> int | None:
    try:
        return os.stat(name, dir_fd=inside).st_size
    except FileNotFoundError:
        return None


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
