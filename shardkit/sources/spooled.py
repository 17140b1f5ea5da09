"""Files that a scan leaves in the work folder: hashed when written, proven before they serve again.

Row borders and decompressed copies decide what a row says. A later run finds them there, and a
disk may have changed them meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

Hashes = tuple[tuple[str, str], ...]
"""Paths, and the xxh3-64 of each file as 16 hex digits."""
_BLOCK_BYTES = 4 << 20


def hashes_of(paths: Iterable[str]) -> Hashes:
    """The files with their hashes. Raises OSError when one cannot be read."""
    return tuple((path, _xxh3_file(path)) for path in paths)


def are_whole(hashes: Hashes) -> bool:
    """Whether all these files are there, and as they were."""
    try:
        return all(_xxh3_file(path) == xxh3 for path, xxh3 in hashes)
    except OSError:
        return False


def _xxh3_file(path: str) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
