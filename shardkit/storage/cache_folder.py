"""Where the cache is, and how many bytes it may take: SHARDKIT_CACHE, SHARDKIT_CACHE_LIMIT."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from shardkit.errors import StorageError, UsageError
from shardkit.units import size_of


def default_folder() -> Path:
    """SHARDKIT_CACHE, else `shardkit` in the user's cache folder.

    Raises UsageError for a user without a home folder, as containers have them.
    """
    chosen = os.environ.get("SHARDKIT_CACHE")
    if chosen:
        return Path(chosen)
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as err:
        raise UsageError(
            "this user has no home folder, and so no cache folder",
            fix="Set SHARDKIT_CACHE to a folder that can be written.",
        ) from err
    return Path(home) / "shardkit"


def private_folder(name: str) -> Path | None:
    """A folder of the cache for what is believed as it lies there; made when it is missing.

    Only this user can write it, also where users share SHARDKIT_CACHE. None where that cannot be.
    """
    with suppress(OSError, UsageError):
        folder = default_folder() / f"{name}-{os.geteuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat(follow_symlinks=False)
        is_ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
        return folder if is_ours and folder.is_dir() else None
    return None


def default_limit() -> int | None:
    """SHARDKIT_CACHE_LIMIT, as 500G; else none. Raises UsageError."""
    text = os.environ.get("SHARDKIT_CACHE_LIMIT", "").strip()
    if not text:
        return None
    try:
        return size_of(text)
    except ValueError as err:
        raise UsageError(
            "SHARDKIT_CACHE_LIMIT is not a size",
            expected="bytes, or a number with K, M, G or T",
            found=os.environ["SHARDKIT_CACHE_LIMIT"],
            fix="Set it as SHARDKIT_CACHE_LIMIT=500G.",
        ) from err


def make_folder(folder: Path) -> None:
    """Make the folder where it is missing; raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise unusable(folder, err) from err


def unusable(folder: Path, err: OSError) -> StorageError:
    """The error of a cache folder that cannot be written."""
    return StorageError(
        "the cache folder cannot be written",
        where=str(folder),
        found=str(err),
        fix="Give another folder: cache_dir=..., or SHARDKIT_CACHE.",
    )
