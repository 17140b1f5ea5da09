"""What did AutoTokenizer make of a folder the last time?

Importing transformers (and torch with it) takes longer than packing a small file. What it made of
a local folder is kept in the cache folder, under a key of all that decides it: the bytes of the
folder's files, the packages that read them, and our own code. Only what comes back the same is
kept. Where transformers was imported already, nothing is kept or recalled: it may have been
changed there. A poisoned entry would give wrong tokens, so only this user can write the folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from shardkit.format import canonical
from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_file, sha256_of
from shardkit.storage.cache import private_folder
from shardkit.tokens import facts, identity, load, tokenizer
from shardkit.tokens.facts import Facts
from shardkit.tokens.identity import TokenizerIdentity
from shardkit.tokens.tokenizer import Tokenizer, rebuild

MAX_REMEMBERED = 16
_PACKAGES = (
    "transformers",
    "tokenizers",
    "sentencepiece",
    "tiktoken",
    "protobuf",
    "mistral_common",
)
_MAX_FILES = 1000
_MAX_BYTES = 64 << 20
"""Of a file whose bytes are read; larger ones hold weights, and count by name, size and time."""
_MAX_TOTAL = 512 << 20
"""Of the files that are read, together."""
_DIGEST_BYTES = 32


class _Head(msgspec.Struct, frozen=True):
    """The first line of an entry; the text of the backend follows."""

    facts: Facts
    identity: TokenizerIdentity


def recall(folder: Path) -> Tokenizer | None:
    """The tokenizer of an unchanged folder; None when there is none, or it cannot be trusted."""
    if "transformers" in sys.modules:
        return None
    with suppress(OSError, msgspec.MsgspecError, importlib.metadata.PackageNotFoundError):
        path = _place(folder)
        if path is None:
            return None
        found = _rebuilt(_checked(path), folder)
        with suppress(OSError):
            path.touch()  # it is the latest used one
        return found
    return None


def remember(folder: Path, loaded: Tokenizer) -> None:
    """Keep what was loaded from a folder, when what comes back is the same."""
    with suppress(OSError, importlib.metadata.PackageNotFoundError):
        path = _place(folder)
        if path is None or path.exists():
            return
        head = msgspec.json.encode(_Head(loaded.facts, loaded.identity))
        data = head + b"\n" + loaded.backend_json.encode()
        if not _is_same(_rebuilt(data, folder), loaded):
            return
        with appear(path) as file:
            file.write(hashlib.sha256(data).digest() + data)
        _forget_oldest(path.parent)


def _checked(path: Path) -> bytes:
    """What an entry holds, without its digest; a damaged one is removed."""
    data = path.read_bytes()
    if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        path.unlink()
        raise OSError("damaged")
    return data[_DIGEST_BYTES:]


def _rebuilt(data: bytes, folder: Path) -> Tokenizer:
    line, _, text = data.partition(b"\n")
    head = msgspec.json.decode(line, type=_Head)
    return rebuild(text.decode(), head.facts, str(folder), folder, head.identity)


def _is_same(again: Tokenizer, loaded: Tokenizer) -> bool:
    """Whether a tokenizer that came back is the loaded one, with all that its text cannot say."""
    return (
        again.facts == loaded.facts
        and again.backend.to_str() == loaded.backend_json
        and not loaded.backend.encode_special_tokens
    )


def _place(folder: Path) -> Path | None:
    """The file of a folder's tokenizer.

    None when it cannot be told when that changes, or when others could write the file.
    """
    versions = {name: _version(name) for name in _PACKAGES}
    if "dev" in (versions["transformers"] or ""):
        return None
    modules = (canonical, facts, identity, load, tokenizer)
    ours = [Path(str(module.__file__)) for module in modules]
    sizes = {path: path.stat().st_size for path in _files(folder)}
    if len(sizes) > _MAX_FILES or sum(n for n in sizes.values() if n <= _MAX_BYTES) > _MAX_TOTAL:
        return None
    key = {
        "python": platform.python_version(),
        "packages": versions,
        "code": [sha256_file(path) for path in ours],
        "files": {str(path.relative_to(folder)): _state(path) for path in sizes},
    }
    place = private_folder("tokenizers")
    return None if place is None else place / f"{sha256_of(key)[:32]}.bin"


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _files(folder: Path) -> Iterator[Path]:
    """All files of the folder and of the folders in it, without hidden ones."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from (inside for inside in sorted(path.iterdir()) if inside.is_file())
        else:
            yield path


def _state(path: Path) -> str:
    status = path.stat()
    if status.st_size > _MAX_BYTES:
        return f"{status.st_size} {status.st_mtime_ns}"
    return sha256_file(path)


def _forget_oldest(place: Path) -> None:
    entries = sorted(place.glob("*.bin"), key=lambda path: path.stat().st_mtime_ns)
    for path in entries[:-MAX_REMEMBERED]:
        path.unlink(missing_ok=True)
