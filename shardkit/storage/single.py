"""One file at a URL, or a folder of them, that no manifest describes: sources, not shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from shardkit.storage.cache import Cache
from shardkit.storage.cache_folder import default_folder
from shardkit.storage.remote import Blocks, RemoteStore
from shardkit.storage.retry import retried
from shardkit.storage.store import File
from shardkit.storage.urls import split_query

_MARKS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "blob_id")
"""Where file systems tell the version of a file."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a URL."""

    store: RemoteStore
    name: str

    def state(self) -> tuple[int, str]:
        """(bytes or -1, its version in the storage's words or ""); raises FileNotFoundError."""

        def request(timeout: float) -> dict[str, Any]:
            fs, path = self.store.at(self.name)
            fs.invalidate_cache()
            try:
                return dict(fs.info(path))
            except FileNotFoundError as err:
                raise _true_cause(err) from err

        info = retried(request, self.store.secret_url(self.name))
        size = info.get("size")
        mark = next((str(info[key]) for key in _MARKS if info.get(key)), "")
        return -1 if size is None else int(size), mark

    def copy(self, out: BinaryIO, n_bytes: int, on_bytes: Callable[[int, int], None]) -> None:
        """Write the file; each block of it is tried again by itself.

        `n_bytes`: its size, -1 when that is not known: then it is asked for whole.
        """
        url = self.store.secret_url(self.name)
        if n_bytes < 0:
            out.write(retried(lambda timeout: self._whole(), url))
            return
        with Blocks(self.store, File(self.name, n_bytes, "")) as blocks:
            done = 0
            while done < n_bytes:
                data = retried(lambda timeout: blocks.read(done, timeout), url)  # noqa: B023
                out.write(data)
                done += len(data)
                on_bytes(done, n_bytes)

    def _whole(self) -> bytes:
        fs, path = self.store.at(self.name)
        return bytes(fs.cat_file(path))


def _true_cause(err: FileNotFoundError) -> Exception:
    """A web server that does not answer, or refuses, is told as a missing file by fsspec."""
    cause = err.__cause__
    is_missing = getattr(cause, "status", None) in (404, 410)
    return cause if isinstance(cause, Exception) and not is_missing else err


def remote_file(url: str, options: Mapping[str, Any]) -> RemoteFile:
    """The file at a URL; nothing is asked of a server yet."""
    path, query = split_query(url)
    root, _, name = path.rpartition("/")
    return RemoteFile(_store(root + query, options), name)


def listed(
    url: str, options: Mapping[str, Any], *, is_glob: bool, depth: int
) -> dict[str, str] | None:
    """The files below a folder, or that a glob means: name -> URL; None when the URL is a file.

    Names are relative to the folder, and for a glob whole paths. `depth`: levels of folders that
    are looked through. Raises FileNotFoundError, StorageError.
    """
    store = _store(url.rstrip("/"), options)

    def request(timeout: float) -> dict[str, str] | None:
        fs, root = store.at("")
        fs.invalidate_cache()
        if is_glob:
            paths = [path for path in fs.glob(root) if fs.info(path)["type"] == "file"]
            return {str(path): str(fs.unstrip_protocol(path)) for path in paths}
        if fs.info(root)["type"] != "directory":
            return None
        paths = fs.find(root, maxdepth=depth)
        return {
            str(path).removeprefix(root).lstrip("/"): str(fs.unstrip_protocol(path))
            for path in paths
        }

    return retried(request, url)


def _store(root: str, options: Mapping[str, Any]) -> RemoteStore:
    return RemoteStore(root, dict(options), Cache(default_folder()))
