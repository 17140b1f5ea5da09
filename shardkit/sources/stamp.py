"""Is an input still the file that was scanned? Told from its inode, size and times, not its bytes.

A changed time of change (ctime) shows a write that set the time of modification back. What was
packed of a file that changed meanwhile would stand under the digest of the old one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from shardkit.errors import BadInput

Stamp: TypeAlias = tuple[int, ...]
"""Inode, size, mtime and ctime (ns) of a file; of a folder, those of the files in it, by name."""


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a file, or of a folder saved by `datasets.save_to_disk`; raises OSError."""
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple(number for file in files for number in _numbers(file.stat()))


def check_unchanged(path: str | Path, stamp: Stamp) -> None:
    """Raise BadInput when the input is gone, or has another stamp than this."""
    try:
        found = stamp_of(path)
    except OSError as err:
        raise BadInput(
            f"the input is gone: {err.strerror}",
            where=str(path),
            fix="Put it back, and run the same command again.",
        ) from err
    if found != stamp:
        raise changed(path)


def changed(path: str | Path) -> BadInput:
    """The error of an input that is not what it was when it was scanned."""
    return BadInput(
        "the input changed while it was packed",
        where=str(path),
        fix="Wait until it is written whole; then pack again with --overwrite (for an append: "
        "--discard).",
    )


def _numbers(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
