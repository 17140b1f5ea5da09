"""A dataset behind a URL: any that fsspec knows. Files are fetched whole and proven before use."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from shardkit.errors import CorruptShard, MissingShard
from shardkit.storage.cache import Cache, Wanted
from shardkit.storage.cache_folder import default_folder, default_limit
from shardkit.storage.fetch_progress import report_progress
from shardkit.storage.locked_copy import Copy
from shardkit.storage.retry import retried
from shardkit.storage.store import File
from shardkit.storage.urls import shown_url, split_query

BLOCK_BYTES = 8 << 20
"""Bytes asked for at a time: what a failure costs."""
N_FETCHES = 3
"""Whole fetches of a file whose bytes are not the expected ones."""
_NO_LISTING = ("http", "https")
"""A web server's index page is not a list of files."""


@dataclass(frozen=True)
class RemoteStore:
    """The files below a URL, through a cache on this node.

    `address`: the URL as it was given. A user and a web address's query, which may be signed, are
    asked with for every file, and shown nowhere.
    """

    address: str = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    cache: Cache
    is_local: bool = False
    _opened: dict[int, tuple[Any, str]] = field(default_factory=dict, repr=False, compare=False)
    """The file system by process: one that was made before a fork cannot be used after it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def cache_limit(self) -> int | None:
        return self.cache.limit

    @property
    def root(self) -> str:
        return shown_url(self.address)

    def url(self, name: str) -> str:
        return f"{self.root}/{name}"

    def secret_url(self, name: str) -> str:
        """The URL of a file as it is asked for: never to be shown."""
        place, query = split_query(self.address)
        return f"{place}/{name}{query}"

    def read(self, name: str) -> bytes:
        def request(timeout: float) -> bytes:
            fs, path = self.at(name)
            if not fs.async_impl:
                return bytes(fs.cat_file(path))
            return bytes(_wait(fs, fs._cat_file(path), timeout))

        return retried(request, self.secret_url(name))

    def part(self, file: File, begin: int, end: int) -> bytes:
        found: list[bytes] = []
        with Blocks(self, file) as blocks:
            while begin < end:
                data = self._found(lambda timeout: blocks.read(begin, timeout, end), file)  # noqa: B023
                found.append(data)
                begin += len(data)
        return b"".join(found)

    def fetch(self, file: File) -> Copy:
        return self.cache.get(self._wanted(file))

    def fetch_if_room(self, file: File) -> Copy | None:
        return self.cache.get_if_room(self._wanted(file))

    def discard(self, copy: Copy) -> bool:
        return copy.remove()

    @contextmanager
    def examine(self, file: File) -> Iterator[Path]:
        with self.cache.temporary(file.sha256, file.name) as out:
            found = self._download_now(file, out)
            if found != file.sha256 and self._download_now(file, out) != found:
                self._download_now(file, out)  # the network lied at least once
            out.flush()
            yield Path(out.name)

    def folder(self, name: str, files: Sequence[File]) -> Path:
        together = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
        folder = self.cache.small_folder(f"{name}.{together[:32]}")
        for file in files:
            path = folder / file.name
            if not path.is_file() or _sha256(path) != file.sha256:
                inner = File(f"{name}/{file.name}", file.n_bytes, file.sha256)
                temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
                with open(temporary, "w+b") as out:
                    self._download_proven(inner, out)
                os.replace(temporary, path)
        return folder

    def names(self) -> list[str] | None:
        fs, root = self.at("")
        if set(_protocols(fs)) & set(_NO_LISTING):
            return None

        def request(timeout: float) -> list[str]:
            fs.invalidate_cache()
            return [str(path) for path in fs.ls(root, detail=False)]

        return sorted(
            {path.rstrip("/").rpartition("/")[2] for path in retried(request, self.secret_url(""))}
        )

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when it is not there. Raises StorageError."""

        def request(timeout: float) -> int:
            fs, path = self.at(name)
            fs.invalidate_cache()
            return int(fs.info(path)["size"])

        try:
            return retried(request, self.secret_url(name))
        except FileNotFoundError:
            return None

    def put(self, source: Path, name: str) -> None:
        """Upload a file; one that is there is replaced. Raises StorageError."""
        n_bytes = source.stat().st_size

        def request(timeout: float) -> None:
            fs, path = self.at(name)
            if fs.async_impl:
                n_blocks = 1 + n_bytes // BLOCK_BYTES
                _wait(fs, fs._put_file(str(source), path), timeout * n_blocks)
            else:
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                fs.put_file(str(source), path)
            fs.invalidate_cache()
            if int(fs.info(path)["size"]) != n_bytes:
                raise ConnectionError(f"not all of {n_bytes} bytes arrived")

        retried(request, self.secret_url(name))

    def remove(self, name: str) -> None:
        """Remove a file. Raises StorageError."""

        def request(timeout: float) -> None:
            fs, path = self.at(name)
            fs.rm_file(path)

        retried(request, self.secret_url(name))

    def at(self, name: str) -> tuple[Any, str]:
        """The file system of this process, and the path of a file in it."""
        found = self._opened.get(os.getpid())
        if found is None:
            import fsspec.core

            place, _ = split_query(self.address)
            fs, root = fsspec.core.url_to_fs(place, **_without_retries(place, self.options))
            if "s3" in _protocols(fs):
                fs.retries = 1
            found = self._opened[os.getpid()] = (fs, root.rstrip("/"))
        fs, root = found
        return fs, f"{root}/{name}{split_query(self.address)[1]}" if name else root

    def _wanted(self, file: File) -> Wanted:
        def download(out: BinaryIO) -> None:
            self._download_proven(file, out)

        return Wanted(file.sha256, file.name, file.n_bytes, self.url(file.name), download)

    def _download_proven(self, file: File, out: BinaryIO) -> None:
        """Write a file whose bytes are the expected ones, or raise CorruptShard."""
        found = ""
        for _ in range(N_FETCHES):
            found = self._download(file, out)
            if found == file.sha256:
                return
        raise CorruptShard(
            "the storage holds another file than the manifest names",
            where=self.url(file.name),
            expected=f"sha256 {file.sha256[:16]}...",
            found=f"sha256 {found[:16]}... ({N_FETCHES} fetches)",
            fix="Upload the dataset again, all of it: a shard or the manifest is of another one. "
            "`shardkit verify URL` says what is wrong.",
        )

    def _download_now(self, file: File, out: BinaryIO) -> str:
        """Write a file of whatever size it has now; its sha256."""

        def request(timeout: float) -> int:
            fs, path = self.at(file.name)
            fs.invalidate_cache()
            return int(fs.info(path)["size"])

        n_bytes = self._found(request, file)
        return self._download(File(file.name, n_bytes, file.sha256), out)

    def _download(self, file: File, out: BinaryIO) -> str:
        """Write a file of this size; the sha256 of what came. Each block is tried again by itself.

        Raises MissingShard, StorageError.
        """
        digest = hashlib.sha256()
        out.seek(0)
        out.truncate(file.n_bytes)
        with Blocks(self, file) as blocks:
            done = 0
            while done < file.n_bytes:
                data = self._found(lambda timeout: blocks.read(done, timeout), file)  # noqa: B023
                out.write(data)
                digest.update(data)
                done += len(data)
                report_progress(file.name, done, file.n_bytes)
        out.flush()
        return digest.hexdigest()

    def _found(self, request: Callable[[float], Any], file: File) -> Any:
        try:
            return retried(request, self.secret_url(file.name))
        except FileNotFoundError as err:
            raise MissingShard(
                "the file is not there",
                where=self.url(file.name),
                fix="Upload it again: the manifest names it.",
            ) from err


def open_remote(url: str, storage_options: Mapping[str, Any] | None) -> RemoteStore:
    """The files below a URL, to write them."""
    return RemoteStore(url, dict(storage_options or {}), Cache(default_folder(), default_limit()))


class Blocks:
    """Reads one remote file from any place on: by ranges, or from one open file."""

    def __init__(self, store: RemoteStore, file: File) -> None:
        self._fs, self._path = store.at(file.name)
        self._n_bytes = file.n_bytes
        self._file: Any = None
        self._whole: bytes | None = None
        """All bytes of the file, where the server does not know ranges: they come only once."""

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def read(self, begin: int, timeout: float, end: int | None = None) -> bytes:
        """The next bytes from `begin` on, to `end` at most; ConnectionError when fewer came."""
        end = min(begin + BLOCK_BYTES, self._n_bytes if end is None else end)
        if self._whole is not None:
            return self._whole[begin:end]
        data = self._range(begin, end, timeout) if self._fs.async_impl else self._next(begin, end)
        if len(data) == self._n_bytes:  # the server does not know ranges and sent all
            self._whole = data
            return data[begin:end]
        if len(data) != end - begin:
            raise ConnectionError(f"{len(data)} bytes came instead of {end - begin}")
        return data

    def _range(self, begin: int, end: int, timeout: float) -> bytes:
        request = self._fs._cat_file(self._path, start=begin, end=end)
        return bytes(_wait(self._fs, request, timeout))

    def _next(self, begin: int, end: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._fs.open(self._path, "rb")
            self._file.seek(begin)
            return bytes(self._file.read(end - begin))
        except Exception:
            self._close()
            raise

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _without_retries(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which S3's client fails at once: tries upon tries upon tries take minutes."""
    if not url.startswith(("s3:", "s3a:")) or "config_kwargs" in options:
        return dict(options)
    return {**options, "config_kwargs": {"retries": {"total_max_attempts": 1}}}


def _wait(fs: Any, request: Any, timeout: float) -> Any:
    """The result of a coroutine of an asynchronous file system, which has a deadline."""
    from fsspec.asyn import sync

    return sync(fs.loop, lambda: request, timeout=timeout)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
