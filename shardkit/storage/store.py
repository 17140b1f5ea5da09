"""The files of one dataset: what a store of them does, and the one for a folder on this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shardkit.errors import MissingShard, StorageError
from shardkit.storage.locked_copy import Copy

_READABLE = "Give a folder whose files this user may read."


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
        """Whether the files lie on this machine, so that looking at them costs nothing."""

    @property
    def cache_limit(self) -> int | None:
        """Bytes of the cache; None when there is no limit or no cache."""

    def url(self, name: str) -> str:
        """The path or URL of a file."""

    def read(self, name: str) -> bytes:
        """A small file whole; raises FileNotFoundError, or StorageError."""

    def part(self, file: File, begin: int, end: int) -> bytes:
        """Bytes begin to end - 1 of a file, which are not proven.

        Raises MissingShard, StorageError.
        """

    def fetch(self, file: File) -> Copy:
        """A local file with the file's bytes: of a local dataset the file itself, not looked at.

        Of a remote one raises MissingShard, CorruptShard when the bytes are others, StorageError.
        """

    def fetch_if_room(self, file: File) -> Copy | None:
        """The local copy of a file; None when the cache has no room beside what is in use."""

    def discard(self, copy: Copy) -> bool:
        """Forget a bad copy; False when it stays, as the file itself or another user's."""

    def examine(self, file: File) -> AbstractContextManager[Path]:
        """A local file with the bytes that are there now, whatever they are, for the time being.

        Raises MissingShard, StorageError.
        """

    def folder(self, name: str, files: Sequence[File]) -> Path:
        """A local folder with these files, which the folder `name` of the dataset holds."""

    def names(self) -> list[str] | None:
        """The sorted names of what is in the dataset's folder; None where that cannot be told."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder on this machine, or on a disk that it mounts: nothing is copied."""

    root: str
    is_local: bool = True
    cache_limit: None = None

    def url(self, name: str) -> str:
        return os.path.join(self.root, name)

    def read(self, name: str) -> bytes:
        path = self.url(name)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise StorageError("not a regular file", where=path, fix=_READABLE)
            with open(path, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError) as err:
            raise FileNotFoundError(path) from err
        except (OSError, ValueError) as err:
            raise unreadable(path, err) from err

    def part(self, file: File, begin: int, end: int) -> bytes:
        path = self.url(file.name)
        try:
            with open(path, "rb") as opened:
                return os.pread(opened.fileno(), end - begin, begin)
        except FileNotFoundError as err:
            raise MissingShard(
                "the shard is not there", where=path, fix="Copy the dataset again, all of it."
            ) from err
        except OSError as err:
            raise unreadable(path, err) from err

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


def unreadable(path: str, err: OSError | ValueError) -> StorageError:
    """The error for a file of this machine that is there, and cannot be read."""
    found = getattr(err, "strerror", None) or str(err)
    return StorageError("the file cannot be read", where=path, found=found, fix=_READABLE)
