"""Small files of a build that vouch for themselves: JSON, and the sha256 of it in a second line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_hex

T = TypeVar("T")


def seal(value: object, path: Path) -> None:
    """Write the value, whole or not at all."""
    data = msgspec.json.encode(value)
    with appear(path) as file:
        file.write(data + b"\n" + sha256_hex(data).encode() + b"\n")


def unseal(path: Path, kind: type[T]) -> T | None:
    """The value of a sealed file; None when there is none, or a bit of it was changed."""
    try:
        data, digest, _ = path.read_bytes().rsplit(b"\n", 2)
        if sha256_hex(data).encode() != digest:
            return None
        return msgspec.json.decode(data, type=kind)
    except (FileNotFoundError, NotADirectoryError, ValueError, msgspec.MsgspecError):
        return None
