"""Where a campaign works: small datasets of every kind, and copies of them to damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from records import TOKENIZER, alpaca_rows, pack_small, write_json, write_llava

from campaign.reading import READERS, Digests

DATASETS: dict[str, dict[str, Any]] = {
    "text": {},
    "best-fit": {"packing": "best-fit"},
    "zstd": {"compression": "zstd:3", "shuffle_seed": 3},
    "llava": {"image_tokens": 4, "max_length": 128},
    "llava-packed-zstd": {
        "image_tokens": 4,
        "max_length": 128,
        "packing": "best-fit",
        "compression": "zstd:3",
    },
}
"""Options of each kind of dataset that is damaged."""
MIXED = {"best-fit-128": {"packing": "best-fit", "max_length": 128}}
"""Options of those that are only read, in mixtures."""
SMALL = {"part_rows": 20, "shard_size": 30_000}
"""Three to six shards of 3 to 30 KB: reading one takes 3 ms."""


@dataclass(frozen=True)
class Packed:
    """A dataset that is whole, its input, and what reading it gives."""

    name: str
    folder: Path
    source: Path
    options: dict[str, Any]

    @cached_property
    def files(self) -> list[str]:
        """All files, relative to the folder: shards first."""
        found = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*")]
        files = [name for name in found if (self.folder / name).is_file()]
        return sorted(files, key=lambda name: (not name.startswith("shard-"), name))

    @cached_property
    def shards(self) -> list[str]:
        """The shards among the files."""
        return [name for name in self.files if name.startswith("shard-")]

    @cached_property
    def data(self) -> dict[str, bytes]:
        """The bytes of every file."""
        return {name: (self.folder / name).read_bytes() for name in self.files}

    @cached_property
    def golden(self) -> dict[str, Digests]:
        """What each way of reading gives."""
        return {name: read(self.folder) for name, read in READERS.items()}


class Room:
    """A scratch folder with datasets that are made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packed: dict[str, Packed] = {}
        self._n_scratch = 0

    def packed(self, name: str, *, seed: int = 0) -> Packed:
        """The dataset of a kind; another `seed` has other rows."""
        key = f"{name}-{seed}"
        if key not in self._packed:
            self._packed[key] = self._make(name, self.folder / "whole" / key, seed)
        return self._packed[key]

    @contextmanager
    def copy(self, packed: Packed) -> Iterator[Path]:
        """A folder with hard links to the files of a dataset.

        Replace a file by `put`, which does not write through the link.
        """
        with self.scratch() as folder:
            link_tree(packed, folder / "set")
            yield folder / "set"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder, removed at the end."""
        self._n_scratch += 1
        folder = self.folder / f"case-{self._n_scratch}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            remove(folder)

    def _make(self, name: str, folder: Path, seed: int) -> Packed:
        remove(folder)  # a case that was given up may have left a half
        folder.mkdir(parents=True)
        options = (DATASETS | MIXED)[name] | SMALL
        if name.startswith("llava"):
            source = write_llava(folder, 40, seed=seed)
            options = options | {"image_root": folder / "images"}
        else:
            source = write_json(folder / "rows.json", alpaca_rows(60, seed=seed, n_bad=3))
        pack_small(source, folder / "set", **options)
        return Packed(name, folder / "set", source, options)


def put(path: Path, data: bytes) -> None:
    """Other bytes under a name, as a file of its own."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def link_tree(packed: Packed, folder: Path) -> None:
    """Hard links to all files of a dataset below a new folder."""
    (folder / "tokenizer").mkdir(parents=True)
    for name in packed.files:
        os.link(packed.folder / name, folder / name)


def remove(folder: Path) -> None:
    """Remove a folder, also one whose rights were taken away."""
    for path in [folder, *folder.rglob("*")] if folder.exists() else ():
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


def pack_words(source: Path, out: Path | str, options: dict[str, Any]) -> list[str]:
    """The arguments of `shardkit` that pack as `pack_small` does."""
    words = ["pack", str(source), "--out", str(out)]
    defaults = {
        "tokenizer": TOKENIZER,
        "template": "qwen_chat",
        "max_length": 64,
        "tokenizer_engine": "hf",
    }
    for name, value in (defaults | options).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words
