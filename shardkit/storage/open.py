"""From the path or URL of a dataset to its files as local ones that can be mapped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardkit.errors import UsageError
from shardkit.storage.cache import Cache
from shardkit.storage.cache_folder import default_folder, default_limit
from shardkit.storage.remote import RemoteStore
from shardkit.storage.store import LocalStore, Store
from shardkit.storage.urls import shown_url

_URL = re.compile(r"[a-z][a-z0-9+.-]+:(:|//)", re.I)
_COLLAPSED = re.compile(r"([a-z][a-z0-9+.-]+):/(?=[^/])", re.I)
"""What pathlib makes of a URL."""


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


def path_here(path: str | Path, what: str) -> Path:
    """A path on this machine; raises UsageError for a URL, of which Path would make a folder s3:.

    `what`: what is named, for the message.
    """
    text = text_of(path)
    if is_url(text):
        raise UsageError(
            f"{what} cannot be at a URL",
            found=shown_url(text),
            fix="Give a folder or file of this machine, and copy from or to the URL.",
        )
    return Path(text)


def split(path: str | Path) -> tuple[str, str]:
    """The folder of a file, and its name there."""
    folder, slash, name = text_of(path).rpartition("/")
    return folder if folder else slash or ".", name


def is_url(path: str | Path) -> bool:
    """Whether files there must be fetched."""
    return not isinstance(path, Path) and _URL.match(path) is not None
