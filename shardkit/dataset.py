"""A dataset at a path or a URL: its manifest, and its files as local ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import (
    BadManifest,
    CorruptShard,
    IdentityMismatch,
    MissingShard,
    ShardkitError,
)
from shardkit.format.builds import Build, builds_by_shard
from shardkit.format.codec import codec_of_file, open_ranges
from shardkit.format.layout import MANIFEST_NAME, TOKENIZER_FOLDER
from shardkit.format.manifest import FileEntry, Manifest, ShardEntry
from shardkit.format.places import read_index
from shardkit.format.shard import Shard
from shardkit.options import nearest_path
from shardkit.order.epoch import Shuffle
from shardkit.storage.locked_copy import Copy
from shardkit.storage.open import open_store, text_of
from shardkit.storage.store import File, Store, unreadable
from shardkit.storage.urls import split_query

N_READS = 3
"""How often a remote manifest that looks damaged is read: the network may have lied."""
_RESTORE = "Copy it back, or rebuild it: shardkit repair DATASET --source FILE ..."


class StorageOptions(TypedDict, total=False):
    """How a dataset behind a URL is reached, for those who pass it on.

    `storage_options`: what fsspec's file system takes (key, secret, endpoint_url, token, ...).
    `cache_dir`: a folder on this node (SHARDKIT_CACHE, else ~/.cache/shardkit). `cache_limit`:
    bytes; the shards that were not used for longest are evicted.
    """

    storage_options: Mapping[str, Any] | None
    cache_dir: str | Path | None
    cache_limit: int | None


@dataclass(frozen=True)
class Dataset:
    """A dataset whose manifest was read and checked. Small enough to be pickled."""

    manifest: Manifest
    store: Store

    @cached_property
    def builds(self) -> list[Build]:
        """The build that made each shard, in the order of the shards."""
        return builds_by_shard(self.manifest)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n_shards,) samples of each shard."""
        return self.manifest.sizes

    @property
    def root(self) -> str:
        """The dataset's path or URL, for messages."""
        return self.store.root

    @property
    def is_local(self) -> bool:
        """Whether looking at a file costs nothing."""
        return self.store.is_local

    @property
    def is_compressed(self) -> bool:
        """Whether samples lie in compressed frames."""
        return any(not codec_of_file(entry.name).is_plain for entry in self.manifest.shards[:1])

    @property
    def prefers_window(self) -> bool:
        """Whether neighbours should be read together: compressed or remote shards."""
        return self.is_compressed or not self.is_local

    def fetch(self, number: int) -> Copy:
        """The file of a shard as a local one; see Store.fetch."""
        return self.store.fetch(_file(self.manifest.shards[number]))

    def fetch_if_room(self, number: int) -> Copy | None:
        """The local copy of a shard; None when the cache has no room beside what is in use."""
        return self.store.fetch_if_room(_file(self.manifest.shards[number]))

    def open_shard(self, number: int, copy: Copy | None = None) -> Shard:
        """Open a shard; a copy that turns out bad, or is gone, is fetched again.

        `copy`: of an earlier `fetch`. Raises what Shard.open raises, StorageError, and
        IdentityMismatch when another dataset was put in this one's place.
        """
        entry = self.manifest.shards[number]
        is_first = True
        while True:
            copy = copy or self.fetch(number)
            try:
                return Shard.open(
                    copy.path,
                    expected=entry,
                    source_names=self.builds[number].source_names,
                    where=self.store.url(entry.name),
                    held=copy,
                )
            except CorruptShard as err:
                if not (is_first and self.store.discard(copy)):
                    self._refuse_replaced(err)
                    raise
                copy, is_first = None, False
            except OSError as err:
                raise unreadable(self.store.url(entry.name), err) from err

    def index(self, number: int) -> NDArray[np.void]:
        """(n,) INDEX_DTYPE rows of a shard, read by ranges: of a remote one nothing is fetched.

        Raises MissingShard, CorruptShard, UnsupportedVersion, StorageError.
        """
        entry = self.manifest.shards[number]
        ranges = _Part(self.store, _file(entry))
        return read_index(open_ranges(entry.name, ranges), entry, self.store.url(entry.name))

    def discard(self, shard: Shard) -> bool:
        """Forget the copy of a shard that turned out bad; False when it stays (Store.discard)."""
        return isinstance(shard.held, Copy) and self.store.discard(shard.held)

    @property
    def cache_limit(self) -> int | None:
        """Bytes of the cache; None without a limit, and for a local dataset."""
        return self.store.cache_limit

    def examine(self, number: int) -> AbstractContextManager[Path]:
        """A local file with the bytes that the shard has now, whatever they are."""
        return self.store.examine(_file(self.manifest.shards[number]))

    def check_present(self, shards: NDArray[np.int64]) -> None:
        """Look that these shards are there, with the right size; nothing is read.

        `shards`: (n,) their numbers. Raises MissingShard, CorruptShard, StorageError, and
        IdentityMismatch when another dataset lies there now. Does nothing for a remote dataset.
        """
        if not self.is_local:
            return
        entries = [self.manifest.shards[number] for number in shards.tolist()]
        found = _sizes_of(self.root, [entry.name for entry in entries])
        if found != [entry.n_bytes for entry in entries]:
            pairs = zip(entries, found, strict=True)
            entry, n_bytes = next(pair for pair in pairs if pair[0].n_bytes != pair[1])
            error = _unlike(entry, n_bytes, os.path.join(self.root, entry.name))
            self._refuse_replaced(error)
            raise error

    def _refuse_replaced(self, error: CorruptShard) -> None:
        """Raise an error that says so when another dataset lies here now, or none.

        A shard that is missing or another one is no damage then: nothing is to be repaired.
        """
        try:
            now = {(entry.name, entry.footer) for entry in read_manifest(self.store).shards}
        except BadManifest as err:
            if not isinstance(err.__cause__, FileNotFoundError):
                return
            raise MissingShard(
                "the dataset is not there any more",
                where=self.root,
                fix="It was moved or deleted under the run: put it back, then go on from a "
                "checkpoint.",
            ) from error
        except ShardkitError:
            return
        if not {(entry.name, entry.footer) for entry in self.manifest.shards} <= now:
            raise IdentityMismatch(
                "the dataset was replaced by another one while it was read",
                where=self.root,
                expected=f"content {self.manifest.content[:12]}",
                found=f"another; {error.message_line()}",
                fix="Start the run anew, or put back the dataset that it began with.",
            ) from error

    def tokenizer_folder(self) -> Path:
        """A local folder with the tokenizer's files."""
        files = [_file(entry) for entry in self.manifest.tokenizer_files]
        return self.store.folder(TOKENIZER_FOLDER, files)


def default_shuffle(datasets: Iterable[Dataset]) -> Shuffle:
    """The shuffle of these datasets when none is given: `window` when one of them prefers it."""
    return "window" if any(one.prefers_window for one in datasets) else "full"


def batches_ahead(*, is_large: bool) -> int:
    """Batches that a loader makes ahead, unless it is told.

    `is_large`: a batch is megabytes, pixels or packs; more would leave the processor's cache.
    """
    return 3 if is_large else 16


def open_dataset(
    path: str | Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    cache_limit: int | None = None,
) -> Dataset:
    """The dataset at a path or URL: its folder, or its manifest.json. Options: StorageOptions.

    Raises BadManifest, UnsupportedVersion, StorageError.
    """
    text = text_of(path)
    place, query = split_query(text)
    folder, slash, name = place.rpartition("/")
    if name == MANIFEST_NAME:
        text = (folder.rstrip("/") or slash or ".") + query
    store = open_store(
        text,
        storage_options=storage_options,
        cache_dir=cache_dir,
        cache_limit=cache_limit,
    )
    return Dataset(read_manifest(store), store)


def load_manifest(
    path: str | Path, *, storage_options: Mapping[str, Any] | None = None
) -> Manifest:
    """The manifest of the dataset at a path or URL; `storage_options` are fsspec's.

    Raises BadManifest when there is none or it is damaged, UnsupportedVersion, StorageError.
    """
    return open_dataset(path, storage_options=storage_options).manifest


def read_manifest(store: Store) -> Manifest:
    """The manifest in a store; raises BadManifest, UnsupportedVersion, StorageError."""
    where = store.url(MANIFEST_NAME)
    n_left = 1 if store.is_local else N_READS
    try:
        while True:
            try:
                return Manifest.from_bytes(store.read(MANIFEST_NAME), where)
            except BadManifest:
                n_left -= 1
                if not n_left:
                    raise
    except (FileNotFoundError, NotADirectoryError) as err:
        raise BadManifest(
            "there is no dataset here: no manifest.json",
            where=store.root,
            fix=_meant_by(store),
        ) from err
    except OSError as err:
        raise BadManifest(
            f"cannot be read: {err.strerror or err}",
            where=where,
            fix="Check the file and its rights, or copy the dataset again.",
        ) from err


def _meant_by(store: Store) -> str:
    """What to give instead of a path where there is no dataset."""
    path = Path(store.root)
    advice = "Give the folder that `shardkit pack --out` made (an unfinished one has none)."
    if not store.is_local:
        return advice
    if (path.parent / MANIFEST_NAME).is_file() and path.is_file():
        return f"Give its folder: {path.parent}"
    with suppress(OSError):
        if path.exists():
            inner = sorted(one for one in path.iterdir() if (one / MANIFEST_NAME).is_file())
            return f"Did you mean {inner[0]}?" if inner else advice
    close = nearest_path(path)
    return f"Did you mean {close}?" if close else advice


def _sizes_of(folder: str, names: Sequence[str]) -> list[int | None]:
    """Bytes of these files; None for one that is not there."""
    try:
        inside = os.open(folder, os.O_RDONLY)  # paths from here are shorter
    except (FileNotFoundError, NotADirectoryError):
        return [None] * len(names)
    except OSError as err:
        raise unreadable(folder, err) from err
    try:
        return [os.stat(name, dir_fd=inside).st_size for name in names]
    except FileNotFoundError:
        return [_size_of(name, inside) for name in names]
    except OSError as err:
        raise unreadable(os.path.join(folder, err.filename or ""), err) from err
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


_END_BYTES = 8 << 10
"""Bytes asked for at once at the end of a file: the footer, or a seek table of 1,000 frames."""


class _Part:
    """A file of a store whose slices are asked for one by one; its last _END_BYTES only once."""

    def __init__(self, store: Store, file: File) -> None:
        self._store = store
        self._file = file
        self._end_begins = max(0, file.n_bytes - _END_BYTES)

    @cached_property
    def _end(self) -> bytes:
        return self._store.part(self._file, self._end_begins, self._file.n_bytes)

    def __len__(self) -> int:
        return self._file.n_bytes

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(len(self))
        if begin >= self._end_begins:
            return self._end[begin - self._end_begins : end - self._end_begins]
        return self._store.part(self._file, begin, end)


def _file(entry: ShardEntry | FileEntry) -> File:
    return File(entry.name, entry.n_bytes, entry.sha256)
