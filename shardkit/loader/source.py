"""One dataset as the loader knows it: where it is, its manifest, and what it must agree with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import CorruptShard, MissingShard
from shardkit.format.builds import builds_by_shard
from shardkit.format.layout import MANIFEST_NAME
from shardkit.format.manifest import Manifest, load_manifest
from shardkit.loader.identity import Expected, refuse_other
from shardkit.storage.locate import is_local, local_path

_RESTORE = "Copy it back, or rebuild it: shardkit repair DATASET --source FILE ..."


@dataclass(frozen=True)
class Source:
    """A dataset whose manifest was read and accepted. Small enough to be pickled."""

    root: str
    manifest: Manifest

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n_shards,) samples of each shard."""
        return self.manifest.sizes

    @cached_property
    def source_names(self) -> list[tuple[str, ...]]:
        """Of each shard: the names of the input files that its rows may come from."""
        return [build.source_names for build in builds_by_shard(self.manifest)]

    @property
    def is_compressed(self) -> bool:
        """Whether samples lie in compressed frames."""
        return any(entry.name.endswith(".zst") for entry in self.manifest.shards[:1])

    @property
    def prefers_window(self) -> bool:
        """Whether neighbours should be read together: compressed or remote shards."""
        return self.is_compressed or not is_local(self.root)

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

    def path(self, shard: int) -> Path:
        """The local file of a shard."""
        return local_path(self.root, self.manifest.shards[shard].name)

    def check_present(self, shards: NDArray[np.int64]) -> None:
        """Look that these shards are there, with the right size; nothing is read.

        Raises MissingShard or CorruptShard. Does nothing for a remote dataset.
        """
        if not is_local(self.root):
            return
        for number in shards.tolist():
            entry = self.manifest.shards[number]
            path = os.path.join(self.root, entry.name)
            try:
                n_bytes = os.stat(path).st_size
            except FileNotFoundError as err:
                raise MissingShard("the shard is not there", where=path, fix=_RESTORE) from err
            if n_bytes != entry.n_bytes:
                raise CorruptShard(
                    "the file has the wrong size",
                    where=path,
                    expected=f"{entry.n_bytes} bytes",
                    found=f"{n_bytes} bytes",
                    fix=_RESTORE,
                )


def open_source(path: str | Path, expected: Expected) -> Source:
    """The dataset at `path`, its folder or its manifest.json.

    Raises BadManifest, UnsupportedVersion, and IdentityMismatch when it was packed with something
    else than `expected`.
    """
    root = str(path).removesuffix(MANIFEST_NAME) or "."
    manifest = load_manifest(local_path(root, MANIFEST_NAME))
    refuse_other(manifest, expected, where=root)
    return Source(root, manifest)
