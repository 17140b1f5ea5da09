"""A dataset as a folder that the hub's own tool uploads: card, manifest, shards, tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset import Dataset, open_dataset
from shardkit.errors import BadManifest
from shardkit.format.atomic import appear, link_or_copy
from shardkit.format.canonical import sha256_hex
from shardkit.format.layout import MANIFEST_NAME
from shardkit.format.manifest import FileEntry
from shardkit.format.relations import companions
from shardkit.integrations.outputs import new_folder
from shardkit.options import FilePath, checked
from shardkit.report.card import CARD_NAME, CardOptions, make_card


@checked
def export_hub_folder(
    dataset: FilePath,
    out: FilePath,
    *,
    card: CardOptions | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: FilePath | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Lay out card and dataset in a new folder; the number of files.

    Shards are hard links where the file system has them, else copies. Everything is looked at as
    far as an open shard is: sizes, footers and indexes, and the files beside the shards whole. The
    manifest is written last, so a folder that was interrupted is no dataset. Raises BuildConflict
    when `out` is not empty, BadManifest, CorruptShard, and what fetching raises.
    """
    out = new_folder(out)
    opened = open_dataset(dataset, storage_options=storage_options, cache_dir=cache_dir)
    manifest = opened.manifest
    opened.check_present(np.arange(len(manifest.shards)))
    beside = {name: _read(opened, name, entry) for name, entry in companions(manifest)}
    beside[CARD_NAME] = make_card(opened, card).encode()
    beside[MANIFEST_NAME] = opened.store.read(MANIFEST_NAME)
    out.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(manifest.shards):
        with opened.open_shard(number) as shard:
            link_or_copy(shard.path, out / entry.name)
        if progress is not None:
            progress(number + 1, len(manifest.shards))
    for name, data in beside.items():
        (out / name).parent.mkdir(exist_ok=True)
        _write(out / name, data)
    return len(manifest.shards) + len(beside)


def _read(dataset: Dataset, name: str, entry: FileEntry) -> bytes:
    """A file beside the shards; raises BadManifest when it is not the one that is named."""
    where, fix = dataset.store.url(name), "Copy the dataset again, or pack it again."
    try:
        data = dataset.store.read(name)
    except FileNotFoundError as err:
        raise BadManifest("a file of the dataset is gone", where=where, fix=fix) from err
    if sha256_hex(data) != entry.sha256:
        raise BadManifest("not the file that the manifest names", where=where, fix=fix)
    return data


def _write(path: Path, data: bytes) -> None:
    with appear(path) as file:
        file.write(data)
