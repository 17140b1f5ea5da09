"""Copies of remote files on this node: each fetched once, however many processes ask.

A finished copy is `<32 hex digits of its sha256>.<name>`. While it is fetched it is called
`partial.<the same>`, and whoever fetches holds an exclusive lock (flock) on it; then it is renamed.
Whoever uses a copy holds a shared lock on it. Locks go with the process, however it ends: what is
locked is in use, what is not may be evicted, and a partial file that nobody locks is a dead one.

Several users may share a folder that all can write. A copy that another user keeps to himself is
fetched again under a name with this user's number in it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from shardkit.errors import StorageError
from shardkit.storage.cache_folder import make_folder, unusable
from shardkit.storage.locked_copy import (
    PARTIAL,
    Copy,
    OfAnother,
    appeared,
    held_copy,
    is_at,
    lock,
    open_lock,
    wait_for_another,
)

log = logging.getLogger("shardkit.storage")

_OURS = re.compile(r"(partial\.)?[0-9a-f]{32}\..+")
"""Names of files that the cache made: only such files are ever removed."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ATTEMPTS = 20
"""Fetches of one file: the cache may be cleared under each, but nobody does it so often."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that should be in the cache."""

    sha256: str
    name: str
    n_bytes: int
    url: str
    """The file's URL, for messages."""
    download: Callable[[BinaryIO], None]
    """Writes the file whole and proven, into one that has its size already."""


class _NoRoom(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of copies, of many datasets; `limit`: bytes, None for as many as the disk holds."""

    root: Path
    limit: int | None = None
    _told: list[int] = field(default_factory=list, repr=False, compare=False)
    """The bytes that the log was told of: more is needed than `limit`."""

    def get(self, file: Wanted) -> Copy:
        """The copy of a file, fetched when no process has fetched it before.

        The limit is exceeded rather than the caller left without data. Raises StorageError when the
        disk is full, and what `download` raises.
        """
        return self._get(file, self._make_room)

    def get_if_room(self, file: Wanted) -> Copy | None:
        """The copy of a file; None when there is no room beside the copies that are in use."""
        try:
            return self._get(file, self._take_free_room)
        except _NoRoom:
            return None

    def _get(self, file: Wanted, reserve: Callable[[BinaryIO, Wanted], None]) -> Copy:
        try:
            return self._get_at(self.root / _name(file.sha256, file.name), file, reserve)
        except OfAnother:
            return self._get_at(self.root / _own_name(file.sha256, file.name), file, reserve)

    def _get_at(
        self, path: Path, file: Wanted, reserve: Callable[[BinaryIO, Wanted], None]
    ) -> Copy:
        n_attempts = 0
        while n_attempts < _ATTEMPTS:
            copy = held_copy(path, file.n_bytes)
            if copy is not None:
                return copy
            with self._claimed(path) as partial:
                if partial is None or path.exists():
                    continue  # it was fetched, or given up, while we waited
                try:
                    reserve(partial, file)
                    self._fill(partial, file)
                except BaseException:
                    if is_at(partial.fileno(), path):  # somebody gave it this name too early
                        path.unlink(missing_ok=True)
                    raise
                copy = appeared(partial, path)
                if copy is not None:
                    return copy
                n_attempts += 1
        raise StorageError(
            "the cache is cleared again and again",
            where=str(self.root),
            fix="Give another folder: cache_dir=..., or SHARDKIT_CACHE.",
        )

    @contextmanager
    def temporary(self, sha256: str, name: str) -> Iterator[BinaryIO]:
        """A file of the cache that is removed when the block ends; this user's other processes
        wait for that when they ask for a temporary file of the same name and hash."""
        while True:
            with self._claimed(self.root / _own_name(sha256, name)) as file:
                if file is not None:
                    yield file
                    return

    def small_folder(self, name: str) -> Path:
        """A folder of small files, which are not evicted."""
        for folder in (self.root / name, self.root / f"{name}.{os.geteuid()}"):
            make_folder(folder)
            if os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                break
        return folder

    @contextmanager
    def _claimed(self, path: Path) -> Iterator[BinaryIO | None]:
        """The partial file of a copy, locked; None after waiting for one who fetched the same.

        It is removed at the end, unless it was renamed.
        """
        partial = path.with_name(PARTIAL + path.name)
        file = self._open_locked(partial)
        if file is None:
            yield None
            return
        try:
            yield file
        finally:
            if is_at(file.fileno(), partial):
                partial.unlink()
                fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile shares it
            file.close()

    def _open_locked(self, path: Path) -> BinaryIO | None:
        make_folder(self.root)
        try:
            file = open(path, "r+b", opener=_create)  # noqa: SIM115 - it is handed over
        except FileNotFoundError:  # the folder was removed just now
            return None
        except PermissionError as err:
            if not path.exists():
                raise unusable(self.root, err) from err
            wait_for_another(path)
            return None
        except OSError as err:
            raise unusable(self.root, err) from err
        try:
            lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Not an exclusive lock: who fetched the file keeps a shared one as long as it is read.
            lock(file.fileno(), fcntl.LOCK_SH)
            file.close()
            return None
        if is_at(file.fileno(), path):
            return file
        file.close()  # renamed or removed just now
        return None

    def _make_room(self, partial: BinaryIO, file: Wanted) -> None:
        """Reserve the bytes of a file on the disk, and evict what that takes."""
        with self._room():
            missing = self._n_over(file.n_bytes)
            if missing > 0 and (freed := evict(self.root, missing)) < missing:
                self._tell((self.limit or 0) + missing - freed)
            while not _reserve(partial, file.n_bytes):
                if not evict(self.root, file.n_bytes):
                    raise _full(self.root, file)

    def _take_free_room(self, partial: BinaryIO, file: Wanted) -> None:
        """Reserve a file's bytes; raises _NoRoom where evicting what is unused does not help."""
        with self._room():
            missing = self._n_over(file.n_bytes)
            if missing > 0 and evict(self.root, missing) < missing:
                raise _NoRoom
            while not _reserve(partial, file.n_bytes):
                if not evict(self.root, file.n_bytes):
                    raise _NoRoom

    def _tell(self, n_bytes: int) -> None:
        """Log that the limit is passed: once, and again when twice as much is needed."""
        if not self._told or n_bytes > 2 * self._told[-1]:
            self._told.append(n_bytes)
            log.warning(
                "%s: the limit of %d bytes is too small, the shards in use take %d: read in "
                "windows (shuffle='window', a small window=), with smaller fetch_ahead, or raise "
                "cache_limit",
                self.root,
                self.limit,
                n_bytes,
            )

    def _n_over(self, n_bytes: int) -> int:
        """Bytes that must go before so many can come."""
        if self.limit is None:
            return 0
        return sum(entry.stat.st_size for entry in _entries(self.root)) + n_bytes - self.limit

    def _fill(self, partial: BinaryIO, file: Wanted) -> None:
        while True:
            try:
                file.download(partial)
                partial.flush()
                return
            except OSError as err:
                if err.errno not in _FULL:
                    raise
                if not evict(self.root, file.n_bytes):
                    raise _full(self.root, file) from err

    @contextmanager
    def _room(self) -> Iterator[None]:
        """One process at a time counts and reserves, or two would take the same room."""
        descriptor = None
        with suppress(FileNotFoundError):  # the folder was removed: there is nothing to count
            descriptor = open_lock(self.root / "lock")
            lock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    stat: os.stat_result


def evict(root: Path, n_bytes: int) -> int:
    """Remove copies that nobody uses, the longest unused first; the bytes that this freed.

    Dead partial files go first. Only files that the cache made are looked at.
    """
    freed = 0
    entries = _entries(root)
    entries.sort(key=lambda e: (not e.path.name.startswith(PARTIAL), e.stat.st_mtime_ns))
    for entry in entries:
        if freed >= n_bytes:
            break
        try:
            descriptor = os.open(entry.path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, entry.path):
                entry.path.unlink()
                freed += entry.stat.st_size
        except OSError:
            continue  # somebody uses it, or only its owner may remove it
        finally:
            os.close(descriptor)
    return freed


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o644)


def _name(sha256: str, name: str) -> str:
    return f"{sha256[:32]}.{name}"


def _own_name(sha256: str, name: str) -> str:
    return f"{sha256[:32]}.{os.geteuid()}.{name}"


def _entries(root: Path) -> list[_Entry]:
    found = []
    with suppress(FileNotFoundError), os.scandir(root) as scan:
        for item in scan:
            if _OURS.fullmatch(item.name):
                with suppress(FileNotFoundError):
                    found.append(_Entry(Path(item.path), item.stat(follow_symlinks=False)))
    return found


def _reserve(file: BinaryIO, n_bytes: int) -> bool:
    """Take the bytes from the disk now, not in the middle of the fetch; False when it is full."""
    try:
        if n_bytes:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as err:
        if err.errno in _FULL:
            os.ftruncate(file.fileno(), 0)
            return False
        os.ftruncate(file.fileno(), n_bytes)  # this disk cannot reserve
    return True


def _full(folder: Path, file: Wanted) -> StorageError:
    return StorageError(
        f"the disk of the cache is full: there is no room for {file.n_bytes:,} bytes, and every "
        "shard in the cache is in use",
        where=file.url,
        found=f"cache {folder}",
        fix="Free space there, or give a folder on another disk: cache_dir=..., SHARDKIT_CACHE.",
    )
