"""What did a process of this user find out about a tokenizer before?

Importing transformers (and torch with it) takes longer than packing a small file, and hashing a
vocabulary takes eight ranks eight times as long as one. So two things are kept in the cache
folder: what AutoTokenizer made of a local folder (`recall`, `remember`), and identities
(`load.identity_of`). Each entry lies under a key of all that decides it: the bytes of the files,
the packages that read them, and our own code. A poisoned entry would give wrong tokens: a folder
that anybody else can write is not used, and an entry begins with the sha256 of the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from shardkit.format import canonical
from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_file, sha256_of
from shardkit.storage.cache_folder import private_folder
from shardkit.tokens.identity import TokenizerIdentity
from shardkit.tokens.tokenizer import Tokenizer, TokenizerConfig, rebuild

WAIT_S = 10.0
"""So long a process waits for another that is finding out the same; then it does so itself."""
_POLL_S = 0.01
_DIGEST_BYTES = 32
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
"""The largest file whose bytes are read; larger ones hold weights, and count by size and time."""
_MAX_TOTAL = 512 << 20
"""The most bytes that are read of one folder."""


@dataclass(frozen=True, slots=True)
class PrivateCache:
    """Entries of bytes by key, in a folder that only this user can write."""

    name: str
    newest: int
    """How many entries are kept: those used last."""

    @property
    def folder(self) -> Path | None:
        """Where the entries lie; None where no such folder can be had."""
        return private_folder(self.name)

    def read(self, key: str) -> bytes | None:
        """What was kept under a key; None when nothing was. A damaged entry is removed."""
        folder = self.folder
        if folder is None:
            return None
        path = folder / f"{key}.bin"
        with suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
                path.unlink()
                return None
            path.touch()
            return data[_DIGEST_BYTES:]
        return None

    def write(self, key: str, data: bytes) -> None:
        """Keep data under a key, and remove the entries that were not used for longest."""
        folder = self.folder
        if folder is None:
            return
        with suppress(OSError):
            with appear(folder / f"{key}.bin") as file:
                file.write(hashlib.sha256(data).digest() + data)
            entries = sorted(folder.glob("*.bin"), key=lambda path: path.stat().st_mtime_ns)
            for path in entries[: -self.newest]:
                path.unlink(missing_ok=True)

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Wait until no other process has the turn; False when that takes longer than WAIT_S.

        False also where there is no folder, or its disk has no locks. The lock goes with the
        process that holds it, however that ends.
        """
        try:
            path = "" if self.folder is None else str(self.folder / "lock")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield False
            return
        try:
            yield _locked(descriptor, time.monotonic() + WAIT_S)
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # else one forked meanwhile would hold it
            os.close(descriptor)


TOKENIZERS = PrivateCache("tokenizers", newest=16)
IDENTITIES = PrivateCache("identities", newest=64)


def _locked(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        except OSError:  # a disk that has no locks
            return False
        else:
            return True


@cache
def code_sha256() -> str:
    """The sha256 of our own code and data that decide what a tokenizer is, found once a process."""
    return sha256_of([sha256_file(path) for path in own_files()])


def own_files() -> list[Path]:
    """All of this folder, whose modules and data may use each other, and the canonical JSON."""
    here = Path(__file__).parent
    files = [path for path in here.iterdir() if path.suffix in (".py", ".json")]
    return [*sorted(files), Path(canonical.__file__)]


class _Head(msgspec.Struct, frozen=True):
    """The first line of an entry; the text of the backend follows."""

    config: TokenizerConfig
    identity: TokenizerIdentity


def recall(folder: Path) -> Tokenizer | None:
    """What AutoTokenizer made of an unchanged folder; None when there is none that can be trusted.

    Where transformers was imported already nothing is recalled: it may have been changed there.
    """
    if "transformers" in sys.modules:
        return None
    with suppress(OSError, msgspec.MsgspecError, importlib.metadata.PackageNotFoundError):
        key = _key_of(folder)
        data = None if key is None else TOKENIZERS.read(key)
        return None if data is None else _rebuilt(data, folder)
    return None


def remember(folder: Path, loaded: Tokenizer) -> None:
    """Keep what was loaded from a folder, when what comes back is the same."""
    with suppress(OSError, importlib.metadata.PackageNotFoundError):
        key = _key_of(folder)
        if key is None or TOKENIZERS.read(key) is not None:
            return
        head = msgspec.json.encode(_Head(loaded.config, loaded.identity))
        data = head + b"\n" + loaded.backend_json.encode()
        if _is_same(_rebuilt(data, folder), loaded):
            TOKENIZERS.write(key, data)


def _rebuilt(data: bytes, folder: Path) -> Tokenizer:
    line, _, text = data.partition(b"\n")
    head = msgspec.json.decode(line, type=_Head)
    return rebuild(text.decode(), head.config, str(folder), folder, head.identity)


def _is_same(again: Tokenizer, loaded: Tokenizer) -> bool:
    """Whether a tokenizer that came back is the loaded one, with all that its text cannot say."""
    return (
        again.config == loaded.config
        and again.backend.to_str() == loaded.backend_json
        and not loaded.backend.encode_special_tokens
    )


def _key_of(folder: Path) -> str | None:
    """The key of a folder's tokenizer; None when it cannot be told when that changes."""
    versions = {name: _version(name) for name in _PACKAGES}
    if "dev" in (versions["transformers"] or ""):
        return None
    sizes = {path: path.stat().st_size for path in _files(folder)}
    if len(sizes) > _MAX_FILES or sum(n for n in sizes.values() if n <= _MAX_BYTES) > _MAX_TOTAL:
        return None
    key = {
        "python": platform.python_version(),
        "packages": versions,
        "code": code_sha256(),
        "files": {str(path.relative_to(folder)): _state(path) for path in sizes},
    }
    return sha256_of(key)


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of the folders in it; what is hidden in the folder is left out."""
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
