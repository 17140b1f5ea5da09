"""A local file of the cache, and the lock that keeps it there while somebody reads it.

Locks are flock's: they go with the process, however it ends. Who fetches holds an exclusive lock on
the partial file, who uses a finished copy holds a shared one.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shardkit.errors import StorageError

PARTIAL = "partial."


class OfAnother(Exception):
    """A file of another user, who keeps it to himself."""


class Copy:
    """A local file, and the lock that keeps it in the cache as long as this lives."""

    def __init__(self, path: str | Path, descriptor: int | None = None) -> None:
        self.path = str(path)
        self._descriptor = descriptor
        self._process = os.getpid()

    def remove(self) -> bool:
        """Take a bad copy out of the cache; False when it is another user's, and stays."""
        self.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return True
        except PermissionError:
            return False
        return True

    def close(self) -> None:
        """Let the cache evict the copy. Its bytes stay where they are mapped."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            if self._process == os.getpid():  # a forked child shares the lock, and must not end it
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def held_copy(path: Path, n_bytes: int) -> Copy | None:
    """The finished copy at a path, locked so that it stays; None: there is none of this size.

    Raises OfAnother, StorageError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as err:
        raise OfAnother from err
    copy = Copy(path, descriptor)
    lock(descriptor, fcntl.LOCK_SH)
    if not is_at(descriptor, path):
        copy.close()
        return None
    if os.fstat(descriptor).st_size != n_bytes:
        if not copy.remove():
            raise OfAnother
        return None
    with suppress(OSError):
        os.utime(path)  # it is the latest used one
    return copy


def appeared(file: BinaryIO, path: Path) -> Copy | None:
    """Give a finished partial file its name. None when it was removed meanwhile.

    When the folder was cleared, the partial name may be another's, who fetches the same: then
    this file is not renamed, and where it was too late for that, the other's is his copy.
    It is not synced: what a power cut leaves is refused by size, index or sample hash, and is
    then fetched again.
    """
    descriptor = os.dup(file.fileno())
    copy = Copy(path, descriptor)
    partial = path.with_name(PARTIAL + path.name)
    with suppress(FileNotFoundError):
        if is_at(descriptor, partial):
            os.rename(partial, path)
    if not is_at(descriptor, path):
        return None
    lock(descriptor, fcntl.LOCK_SH)
    return copy


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def lock(descriptor: int, kind: int) -> None:
    """flock; raises BlockingIOError, and StorageError on a disk that cannot lock."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError as err:
        raise StorageError(
            "the cache folder is on a disk that cannot lock files",
            found=str(err),
            fix="Give a folder on a disk of this node: cache_dir=..., or SHARDKIT_CACHE.",
        ) from err


def open_lock(path: Path) -> int:
    """The lock of a cache folder, for all its users; FileNotFoundError without the folder."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # of another user with an older shardkit: flock needs no more
        return os.open(path, os.O_RDONLY)
    with suppress(PermissionError):
        os.fchmod(descriptor, 0o666)  # whatever the umask: nothing is in it
    return descriptor


def wait_for_another(path: Path) -> None:
    """Wait until another user has fetched what he locks; raises OfAnother when he hides it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    except PermissionError as err:
        raise OfAnother from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock(descriptor, fcntl.LOCK_SH)
        return
    finally:
        os.close(descriptor)
    with suppress(FileNotFoundError):  # a dead one
        try:
            path.unlink()
        except PermissionError as err:
            raise OfAnother from err
