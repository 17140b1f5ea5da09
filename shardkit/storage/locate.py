"""From the path or URL of a dataset to its files as local ones that can be mapped."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shardkit.storage.cache import Cache, Copy, default_folder, default_limit

_URL = re.compile(r"[a-z][a-z0-9+.-]+:(:|//)", re.I)
_COLLAPSED = re.compile(r"([a-z][a-z0-9+.-]+):/(?=[^/])", re.I)
"""What pathlib makes of a URL."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset, and what its bytes must be."""

    name: str
    """A plain file name, or one in a folder of the dataset; checked by who made this."""
    n_bytes: int
    sha256: str


class Store(Protocol):
    """The files of one dataset. Small enough to be pickled; threads may share it."""

    @property
    def root(self) -> str:
        """The path or URL, as messages name it."""

    @property
    def is_local(self) -> bool:
        """Whether its files lie on this machine, so that looking at them costs nothing."""

    @property
    def cache_limit(self) -> int | None:
        """Bytes of the cache; None when there is no limit or no cache."""

    def url(self, name: str) -> str:
        """The path or URL of a file."""

    def read(self, name: str) -> bytes:
        """A small file whole; raises FileNotFoundError, or StorageError."""

    def fetch(self, file: File) -> Copy:
        """A local file with these bytes.

        Raises MissingShard, CorruptShard when the bytes are others, StorageError.
        """

    def fetch_if_room(self, file: File) -> Copy | None:
        """The same; None when the cache has no room beside what is in use."""

    def discard(self, copy: Copy) -> bool:
        """Forget a copy that turned out bad; False when it is not a copy but the file itself."""

    def examine(self, file: File) -> AbstractContextManager[Path]:
        """A local file with the bytes that are there now, whatever they are, for the time being.

        Raises MissingShard, StorageError.
        """

    def folder(self, name: str, files: Sequence[File]) -> Path:
        """A local folder with these files, which the folder `name` of the dataset holds."""

    def names(self) -> list[str] | None:
        """What is in the dataset's folder; None where that cannot be told."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder on this machine, or on a disk that it mounts: nothing is copied."""

    root: str
    is_local: bool = True
    cache_limit: None = None

    def url(self, name: str) -> str:
        return os.path.join(self.root, name)

    def read(self, name: str) -> bytes:
        return (Path(self.root) / name).read_bytes()

    def fetch(self, file: File) -> Copy:
        return Copy(os.path.join(self.root, file.name))

    def fetch_if_room(self, file: File) -> Copy:
        return self.fetch(file)

    def discard(self, copy: Copy) -> bool:
        return False

    @contextmanager
    def examine(self, file: File) -> Iterator[Path]:
        yield Path(self.root) / file.name

    def folder(self, name: str, files: Sequence[File]) -> Path:
        return Path(self.root) / name

    def names(self) -> list[str]:
        return sorted(os.listdir(self.root))


def open_store(
    path: str | Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    cache_limit: int | None = None,
) -> Store:
    """The files of the dataset at a path or URL; nothing is asked of a server yet.

    `cache_dir` and `cache_limit` (bytes) are for URLs; by default SHARDKIT_CACHE and
    SHARDKIT_CACHE_LIMIT.
    """
    root = text_of(path)
    if is_url(root):
        from shardkit.storage.remote import RemoteStore

        folder = default_folder() if cache_dir is None else Path(cache_dir)
        limit = default_limit() if cache_limit is None else cache_limit
        return RemoteStore(root, dict(storage_options or {}), Cache(folder, limit))
    return LocalStore(root)


def text_of(path: str | Path) -> str:
    """A path or URL as text; file:// is a path, and a URL that went through pathlib is repaired."""
    text = str(path)
    if isinstance(path, Path):
        text = _COLLAPSED.sub(r"\1://", text, count=1)
    for scheme in ("file://", "local://"):
        if text.startswith(scheme):
            return text.removeprefix(scheme)
    return text.rstrip("/") if is_url(text) and not text.endswith("://") else text


def split(path: str | Path) -> tuple[str, str]:
    """The folder of a file, and its name there."""
    folder, slash, name = text_of(path).rpartition("/")
    return folder if folder else slash or ".", name


def is_url(path: str | Path) -> bool:
    """Whether files there must be fetched."""
    return not isinstance(path, Path) and _URL.match(path) is not None
