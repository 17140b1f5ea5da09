"""A dataset as a folder that the hub's own tool uploads: card, manifest, shards, tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shardkit.dataset import open_dataset
from shardkit.errors import BuildConflict
from shardkit.format.atomic import appear
from shardkit.format.layout import MANIFEST_NAME, TOKENIZER_FOLDER
from shardkit.report.card import CARD_NAME, CardOptions, make_card


def export_hub_folder(
    dataset: str | Path,
    out: str | Path,
    *,
    card: CardOptions | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Lay out card and dataset in a new folder; the number of files.

    Shards are hard links where the file system has them, else copies. The manifest is written
    last, so a folder that was interrupted is no dataset. Raises BuildConflict when `out` is not
    empty, and what fetching raises.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise BuildConflict(
            "the output folder is not empty", where=str(out), fix="Give a new folder."
        )
    opened = open_dataset(dataset, storage_options=storage_options, cache_dir=cache_dir)
    manifest = opened.manifest
    out.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(manifest.shards):
        copy = opened.fetch(number)
        _place(Path(copy.path), out / entry.name)
        if progress is not None:
            progress(number + 1, len(manifest.shards))
    if manifest.tokenizer_files:
        (out / TOKENIZER_FOLDER).mkdir()
        folder = opened.tokenizer_folder()
        for file in manifest.tokenizer_files:
            shutil.copyfile(folder / file.name, out / TOKENIZER_FOLDER / file.name)
    names = [manifest.rejects.name] if manifest.rejects is not None else []
    for name in names:
        _write(out / name, opened.store.read(name))
    _write(out / CARD_NAME, make_card(opened, card).encode())
    _write(out / MANIFEST_NAME, opened.store.read(MANIFEST_NAME))
    return len(manifest.shards) + len(manifest.tokenizer_files) + len(names) + 2


def _place(source: Path, target: Path) -> None:
    """The same bytes under another name: shards never change, so a link is as good as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, data: bytes) -> None:
    with appear(path) as file:
        file.write(data)
