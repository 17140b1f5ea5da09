"""Has a process on this node found this tokenizer's identity before?

Eight ranks that are given the same tokenizer need not hash its vocabulary eight times. What
decides an identity is what the tokenizer says of itself now: the text of its backend, its special
ids, its chat templates. That is looked at every time, so a tokenizer that was changed in memory
is another one; only what follows from it is kept, in a folder that nobody but this user can write.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tokenizers

from shardkit.format import canonical
from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_file, sha256_hex, sha256_of
from shardkit.storage.cache import private_folder
from shardkit.tokens import facts, identity, load, tokenizer
from shardkit.tokens.facts import Facts, facts_of_hf
from shardkit.tokens.identity import TokenizerIdentity
from shardkit.tokens.load import load_tokenizer
from shardkit.tokens.tokenizer import Tokenizer

MAX_KNOWN = 64
WAIT_S = 10.0
"""So long a process waits for another that is finding it out; then it does so itself."""
_POLL_S = 0.01
_HEX = 64
"""Of the sha256 that begins an entry."""

_seen: dict[str, TokenizerIdentity] = {}
"""What this process knows, by key."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a tokenizer says of itself, and how its identity is found from there."""

    text: str
    facts: Facts
    is_split: bool
    """Whether special tokens inside a text are encoded as text."""
    compute: Callable[[], TokenizerIdentity]

    @property
    def key(self) -> str:
        """The same for the same tokenizer, libraries and code."""
        modules = (canonical, facts, identity, load, tokenizer)
        code = [sha256_file(Path(str(module.__file__))) for module in modules]
        return sha256_of(
            {
                "text": sha256_hex(self.text.encode()),
                "special_ids": self.facts.special_ids,
                "chat_templates": self.facts.chat_templates,
                "is_split": self.is_split,
                "tokenizers": tokenizers.__version__,
                "code": code,
            }
        )


def identity_of(source: object) -> TokenizerIdentity:
    """The identity of what `load_tokenizer` would make of `source`, which is not changed.

    Raises what load_tokenizer raises.
    """
    said = _ask(source)
    if isinstance(said, TokenizerIdentity):
        return said
    key = said.key
    if key not in _seen:
        _seen[key] = _shared(key, said.compute)
    return _seen[key]


def _ask(source: object) -> _Said | TokenizerIdentity:
    backend = getattr(source, "backend_tokenizer", source)
    if isinstance(source, Tokenizer) or not isinstance(backend, tokenizers.Tokenizer):
        loaded = load_tokenizer(source)
        if loaded.known is not None or "identity" in loaded.__dict__:
            return loaded.identity
        is_split = loaded.backend.encode_special_tokens
        return _Said(loaded.backend_json, loaded.facts, is_split, lambda: loaded.identity)
    text, facts = backend.to_str(), Facts() if backend is source else facts_of_hf(source)
    is_split = backend.encode_special_tokens

    def compute() -> TokenizerIdentity:
        if backend.truncation or backend.padding or is_split:
            return load_tokenizer(source).identity
        return Tokenizer(backend, facts, text=text).identity  # a copy would be no other

    return _Said(text, facts, is_split, compute)


def _shared(key: str, compute: Callable[[], TokenizerIdentity]) -> TokenizerIdentity:
    """What was kept under the key; else computed, by one process while the others wait."""
    folder = private_folder("identities")
    if folder is None:
        return compute()
    path = folder / f"{key}.json"
    found = _read(path)
    if found is not None:
        return found
    with _turn(folder) as is_ours:
        found = _read(path) or compute()
        if is_ours:
            with suppress(OSError):
                _keep(path, found)
    return found


@contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """Wait until no other process is at it; False when that takes too long, or cannot be told.

    The lock goes with the process that holds it, however that ends.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        yield _locked(descriptor, time.monotonic() + WAIT_S)
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # else one forked meanwhile would hold it too
        os.close(descriptor)


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


def _read(path: Path) -> TokenizerIdentity | None:
    """An entry; None when there is none, or it is damaged."""
    with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
        data = path.read_bytes()
        if sha256_hex(data[_HEX:]).encode() == data[:_HEX]:
            return msgspec.json.decode(data[_HEX:], type=TokenizerIdentity)
    return None


def _keep(path: Path, found: TokenizerIdentity) -> None:
    data = msgspec.json.encode(found)
    with appear(path) as file:
        file.write(sha256_hex(data).encode() + data)
    entries = sorted(path.parent.glob("*.json"), key=lambda entry: entry.stat().st_mtime_ns)
    for entry in entries[:-MAX_KNOWN]:
        entry.unlink(missing_ok=True)
