"""How is a tokenizer loaded, whatever names it, and which one is it?

A hub name, a folder, a `tokenizer.json`, a transformers or a `tokenizers` object all become one
`Tokenizer`. Loading goes through transformers' AutoTokenizer, because its classes change what the
files say (Llama's prefix space, Qwen's normalizer), and ids must be those that training sees.
What it made of a folder is kept (`tokenizer_cache.py`): transformers takes seconds to import.

An identity is found from what a tokenizer says of itself now: the text of its backend, its special
ids, its chat templates. That is looked at every time, so a tokenizer that was changed in memory is
another one; only what follows from it is kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import tokenizers

from shardkit.errors import TokenizerError
from shardkit.format.canonical import sha256_hex, sha256_of
from shardkit.storage.hub import find_model
from shardkit.tokens.identity import TokenizerIdentity
from shardkit.tokens.tokenizer import Tokenizer, TokenizerConfig, bare, read_config
from shardkit.tokens.tokenizer_cache import IDENTITIES, code_sha256, recall, remember

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_FILES = ("tokenizer_config.json", "tokenizer.json", "config.json")
"""Files of which a model on the hub has at least one."""


def load_tokenizer(source: object, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer that `source` names: a hub name, a folder, a tokenizer.json, or an object.

    A name or folder gives what AutoTokenizer makes of it. A tokenizer.json gives the definition
    in that file, which is not always the same: transformers 5 rebuilds Llama-2's.
    Raises TokenizerError when there is none, when it needs remote code that was not allowed, or
    when it has no fast (`tokenizers`) implementation. An object that is given is not changed.
    """
    if isinstance(source, Tokenizer):
        return source
    if isinstance(source, tokenizers.Tokenizer):
        return Tokenizer(bare(_copy(source)), name="a tokenizers.Tokenizer")
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.suffix == ".json" and path.is_file():
            return _from_json_file(path)
        if not trust_remote_code and path.is_dir():
            return _from_folder(path)
        return _from_hf(_auto_tokenizer(source, trust_remote_code), str(source), is_ours=True)
    return _from_hf(source, type(source).__name__, is_ours=False)


def _from_folder(path: Path) -> Tokenizer:
    found = recall(path)
    if found is None:
        is_unchanged = "transformers" not in sys.modules  # else it may have been changed there
        found = _from_hf(_auto_tokenizer(path, False), str(path), is_ours=True)
        if is_unchanged:
            remember(path, found)
    return found


def _from_json_file(path: Path) -> Tokenizer:
    """The definition exactly as the file has it; special tokens from the config beside it."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(
            f"not a tokenizer.json: {error}",
            where=str(path),
            fix="Give the folder that holds tokenizer.json and tokenizer_config.json.",
        ) from error
    return Tokenizer(bare(backend), TokenizerConfig.of_folder(path.parent, backend), name=str(path))


def _auto_tokenizer(source: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    name = str(source)
    if isinstance(source, Path) and not source.expanduser().exists():
        raise TokenizerError("there is no such file or folder", where=name, fix="Check the path.")
    is_local = find_model(name, _FILES, TokenizerError)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            os.path.expanduser(name),
            trust_remote_code=trust_remote_code,
            use_fast=True,
            local_files_only=is_local,
        )
    except Exception as error:  # transformers raises nearly every type here
        read_config(Path(name).expanduser())  # names the file where that is what is wrong
        raise _load_error(name, error) from error


def _load_error(name: str, error: Exception) -> TokenizerError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return TokenizerError(
            "the tokenizer is written as remote code, which is not run unless you allow it",
            where=name,
            fix="Read that code; then give --trust-remote-code, or convert it to tokenizer.json.",
        )
    return TokenizerError(
        f"cannot load the tokenizer: {text[:300]}",
        where=name,
        fix="Give a folder with tokenizer.json, or a hub name that is downloaded or reachable.",
    )


def _from_hf(hf: object, name: str, *, is_ours: bool) -> Tokenizer:
    backend = getattr(hf, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise TokenizerError(
            "not a fast tokenizer: it has no `tokenizers` backend",
            where=name,
            found=type(hf).__name__,
            fix="Convert it to tokenizer.json (PreTrainedTokenizerFast) first.",
        )
    backend = bare(backend if is_ours else _copy(backend))
    return Tokenizer(backend, TokenizerConfig.of_hf(hf), name=name, given=hf)  # type: ignore[arg-type]


def _copy(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(backend.to_str())


_identities: dict[str, TokenizerIdentity] = {}
"""The identities that this process knows, by key."""


@dataclass(frozen=True, slots=True)
class _Statement:
    """What a tokenizer says of itself, and how its identity is computed from there."""

    text: str
    config: TokenizerConfig
    is_split: bool
    """Whether special tokens inside a text are encoded as text."""
    compute: Callable[[], TokenizerIdentity]

    @property
    def key(self) -> str:
        """A key that is the same for the same tokenizer, libraries and code."""
        return sha256_of(
            {
                "text": sha256_hex(self.text.encode()),
                "special_ids": self.config.special_ids,
                "chat_templates": self.config.chat_templates,
                "is_split": self.is_split,
                "tokenizers": tokenizers.__version__,
                "code": code_sha256(),
            }
        )


def identity_of(source: object) -> TokenizerIdentity:
    """The identity of what `load_tokenizer` would make of `source`, which is not changed.

    Raises what load_tokenizer raises.
    """
    statement = _ask(source)
    if isinstance(statement, TokenizerIdentity):
        return statement
    key = statement.key
    if key not in _identities:
        _identities[key] = _shared_identity(key, statement.compute)
    return _identities[key]


def _ask(source: object) -> _Statement | TokenizerIdentity:
    backend = getattr(source, "backend_tokenizer", source)
    if isinstance(source, Tokenizer) or not isinstance(backend, tokenizers.Tokenizer):
        loaded = load_tokenizer(source)
        if loaded.known is not None or "identity" in loaded.__dict__:
            return loaded.identity
        is_split = loaded.backend.encode_special_tokens
        return _Statement(loaded.backend_json, loaded.config, is_split, lambda: loaded.identity)
    text = backend.to_str()
    config = TokenizerConfig() if backend is source else TokenizerConfig.of_hf(source)
    is_split = backend.encode_special_tokens

    def compute() -> TokenizerIdentity:
        if backend.truncation or backend.padding or is_split:
            return load_tokenizer(source).identity
        return Tokenizer(backend, config, text=text).identity  # a copy would be no other

    return _Statement(text, config, is_split, compute)


def _shared_identity(key: str, compute: Callable[[], TokenizerIdentity]) -> TokenizerIdentity:
    """What was kept under the key; else computed, by one process while the others wait."""
    found = _kept_identity(key)
    if found is not None:
        return found
    with IDENTITIES.turn() as is_ours:
        found = _kept_identity(key) or compute()
        if is_ours:
            IDENTITIES.write(key, msgspec.json.encode(found))
    return found


def _kept_identity(key: str) -> TokenizerIdentity | None:
    data = IDENTITIES.read(key)
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return None if data is None else msgspec.json.decode(data, type=TokenizerIdentity)
    return None
