"""Samples of a webdataset tar: where they are, and what is in one.

A sample is a run of regular files whose names are equal up to the first dot of the last part. It
is a row of the source; its bytes in the tar are a small tar of their own. Nothing is unpickled:
`.json` and `.txt` are decoded, all else stays bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Reason, Reject
from shardkit.errors import BadInput
from shardkit.sources.json_value import parse

KEY = "__key__"
"""The key of a row that holds the sample's name; webdataset calls it so."""
_MAGIC_AT, _MAGIC = 257, b"ustar"
_BLOCK = 512
_FLUSHED = 1 << 14
"""Samples that are gathered before a block of them is given."""
_BROKEN = (tarfile.TarError, EOFError, OSError, ValueError)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, by its first header."""
    with open(path, "rb") as file:
        file.seek(_MAGIC_AT)
        return file.read(len(_MAGIC)) == _MAGIC


def find_samples(file: BinaryIO, path: Path) -> Iterator[NDArray[np.uint64]]:
    """(n, 2) uint64 begin and end of samples, in blocks; BadInput for a tar that is cut short."""
    found: list[tuple[int, int]] = []
    key, begin, end = "", 0, 0
    try:
        for offset, after, name in _members(file):
            split = split_name(name)
            if split is None:
                continue
            if split[0] != key and key:
                found.append((begin, end))
            if split[0] != key:
                key, begin = split[0], offset
            end = after
            if len(found) >= _FLUSHED:
                yield np.array(found, np.uint64)
                found = []
        _check_end(file)
    except _BROKEN as err:
        raise BadInput(
            f"not readable as a tar: {err}",
            where=str(path),
            fix="The file is damaged or cut short: fetch it again.",
        ) from err
    if key:
        found.append((begin, end))
    yield np.array(found, np.uint64).reshape(-1, 2)


def _members(file: BinaryIO) -> Iterator[tuple[int, int, str]]:
    """(offset, offset after it, name) of the regular files; headers alone are read."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]
            if member.isreg():
                n_blocks = -(-member.size // _BLOCK)
                yield member.offset, member.offset_data + n_blocks * _BLOCK, member.name


def _check_end(file: BinaryIO) -> None:
    """A tar ends with empty blocks; without them something may be missing."""
    file.seek(-_BLOCK, io.SEEK_END)
    if any(file.read(_BLOCK)):
        raise EOFError("it has no end")


def split_name(name: str) -> tuple[str, str] | None:
    """(name up to the first dot of its last part, what follows); None for what is no member."""
    path = PurePosixPath(name)
    base, dot, extension = path.name.partition(".")
    if not dot or not base or (path.name.startswith("__") and path.name.endswith("__")):
        return None
    return str(path.parent / base), extension.lower()


def sample_of(data: bytes) -> object:
    """The sample in these bytes of a tar: its key, and members by extension; or a Reject."""
    found: dict[str, object] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                split = split_name(member.name) if member.isreg() else None
                if split is None:
                    continue
                key, extension = split
                if extension in found:
                    return Reject(Reason.BAD_RECORD, f"{key} has two members .{extension}")
                found[KEY] = key
                file = tar.extractfile(member)
                value = _decoded(extension, file.read() if file else b"")
                if isinstance(value, Reject):
                    return Reject(value.reason, f"{key}.{extension}: {value.detail}")
                found[extension] = value
    except _BROKEN as err:
        return Reject(Reason.BAD_RECORD, f"not readable as a tar: {err}")
    return found


def _decoded(extension: str, data: bytes) -> object:
    """The value of a member; a Reject for what its name says that it is, and is not."""
    last = extension.rpartition(".")[2]
    if last == "json":
        return parse(data)
    try:
        return data.decode() if last == "txt" else data
    except UnicodeDecodeError as err:
        return Reject(Reason.BAD_RECORD, f"not UTF-8: {err}")
