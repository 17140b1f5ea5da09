"""How is a tokenizer loaded, whatever names it?

A hub name, a folder, a `tokenizer.json`, a transformers or a `tokenizers` object all become one
`Tokenizer`. Loading goes through transformers' AutoTokenizer, because its classes change what the
files say (Llama's prefix space, Qwen's normalizer), and ids must be those that training sees.
transformers is imported here only, when it is needed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import tokenizers

from shardkit.conversation import IMAGE_MARK
from shardkit.errors import TokenizerError
from shardkit.format.canonical import canonical_json, canonical_object, sha256_hex, sha256_of
from shardkit.tokens.facts import SPECIAL, Facts, config_of, facts_of_folder, facts_of_hf
from shardkit.tokens.identity import PROBE_TEXT, TokenizerIdentity, definition_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_BOS = frozenset({"QWenTokenizer", "QWen2Tokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"})
_CHATGLM = "ChatGLMTokenizer"
_CHATGLM_BOS = (64790, 64792)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that is ready to encode, and its identity. Make one with `load_tokenizer`."""

    backend: tokenizers.Tokenizer
    """Without truncation and padding."""
    facts: Facts = field(default_factory=Facts)
    name: str = ""
    """As the user gave it; for messages only."""
    given: PreTrainedTokenizerBase | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.backend_json, self.facts, self.name))

    @cached_property
    def backend_json(self) -> str:
        """The backend as the text of a tokenizer.json."""
        return self.backend.to_str()

    @cached_property
    def hf(self) -> PreTrainedTokenizerBase:
        """The transformers tokenizer: the one it was loaded as, or one around the backend."""
        if self.given is not None:
            return self.given
        transformers = importlib.import_module("transformers")
        tokens = {name: str(token) for name, token in self.facts.special_tokens.items()}
        hf: PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            **{name: tokens[name] for name in tokens if name.removesuffix("_token") in SPECIAL},
        )
        hf.chat_template = self.chat_template
        return hf

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """What XTuner puts before a turn: nothing for Qwen, two ids for ChatGLM."""
        if _NO_BOS.intersection(self.facts.class_names):
            return ()
        if _CHATGLM in self.facts.class_names:
            return _CHATGLM_BOS
        bos = self.facts.special_ids.get("bos")
        return () if bos is None else (bos,)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """What ends an answer: the EOS id; empty when the tokenizer has none."""
        eos = self.facts.special_ids.get("eos")
        return () if eos is None else (eos,)

    @property
    def chat_template(self) -> str | None:
        """The chat template's text."""
        return self.facts.chat_templates.get("default")

    @cached_property
    def vocab_size(self) -> int:
        """The highest id + 1."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def identity(self) -> TokenizerIdentity:
        """The hashes and counts that a manifest keeps."""
        definition = definition_of(self.backend_json)
        canonical = {name: canonical_json(value) for name, value in definition.items()}
        added = definition["added_tokens"]
        probe = self.backend.encode_batch(list(PROBE_TEXT), add_special_tokens=False)
        templates = self.facts.chat_templates
        return TokenizerIdentity(
            sha256=sha256_hex(canonical_object(canonical)),
            probe_sha256=sha256_of([encoding.ids for encoding in probe]),
            vocab_size=self.vocab_size,
            n_added_tokens=len(added) if isinstance(added, list) else 0,
            parts={name: sha256_hex(text) for name, text in canonical.items()},
            special_ids={name: self.facts.special_ids.get(name) for name in SPECIAL},
            chat_template_sha256=_templates_sha256(templates),
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens included; a negative id is shown as IMAGE_MARK."""
        texts, run = [], list[int]()
        for token in ids:
            if token >= 0:
                run.append(int(token))
                continue
            texts += [self.backend.decode(run, skip_special_tokens=False), IMAGE_MARK]
            run = []
        return "".join([*texts, self.backend.decode(run, skip_special_tokens=False)])

    def files(self) -> dict[str, bytes]:
        """The files that load as this tokenizer offline, by name."""
        config = msgspec.json.format(canonical_json(config_of(self.facts)), indent=2)
        backend = msgspec.json.format(self.backend_json.encode(), indent=1)
        return {"tokenizer.json": backend, "tokenizer_config.json": config}


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
        return Tokenizer(_bare(_copy(source)), name="a tokenizers.Tokenizer")
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix == ".json" and path.is_file():
            return _from_json_file(path)
        return _from_hf(_auto_tokenizer(source, trust_remote_code), str(source), is_ours=True)
    return _from_hf(source, type(source).__name__, is_ours=False)


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
    return Tokenizer(_bare(backend), facts_of_folder(path.parent, backend), name=str(path))


def _auto_tokenizer(source: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    name = str(source)
    looks_local = (
        isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1
    )
    if looks_local and not Path(name).expanduser().exists():
        raise TokenizerError("there is no such folder", where=name, fix="Check the path.")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            os.path.expanduser(name), trust_remote_code=trust_remote_code, use_fast=True
        )
    except Exception as error:  # transformers raises nearly every type here
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
    backend = _bare(backend if is_ours else _copy(backend))
    return Tokenizer(backend, facts_of_hf(hf), name=name, given=hf)  # type: ignore[arg-type]


def _copy(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(backend.to_str())


def _bare(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    backend.no_truncation()
    backend.no_padding()
    return backend


def _rebuild(backend_json: str, facts: Facts, name: str) -> Tokenizer:
    return Tokenizer(_bare(tokenizers.Tokenizer.from_str(backend_json)), facts, name=name)


def _templates_sha256(templates: Mapping[str, str]) -> str | None:
    if not templates:
        return None
    if set(templates) == {"default"}:
        return sha256_hex(templates["default"].encode())
    return sha256_of(dict(templates))
