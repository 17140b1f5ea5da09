"""One byte string for one JSON value, and its hash (docs/format.md, section 11.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import xxhash


def canonical_json(value: object) -> bytes:
    """The value as UTF-8 JSON: keys sorted by code point, no spaces, nothing escaped needlessly."""
    return msgspec.json.encode(value, order="sorted")


def canonical_object(values: Mapping[str, bytes]) -> bytes:
    """The canonical JSON of an object whose values are canonical JSON already."""
    fields = (canonical_json(name) + b":" + values[name] for name in sorted(values))
    return b"{" + b",".join(fields) + b"}"


def sha256_hex(data: bytes) -> str:
    """The sha256 of `data`, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(value: object) -> str:
    """The sha256 of the value's canonical JSON."""
    return sha256_hex(canonical_json(value))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def xxh3_hex(data: bytes | memoryview) -> str:
    """The xxh3-64 of `data` (seed 0), 16 lower-case hex digits, most significant first."""
    return f"{xxhash.xxh3_64_intdigest(data):016x}"
