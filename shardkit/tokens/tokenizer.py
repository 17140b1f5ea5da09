"""What does a pack need to know of a tokenizer? Its backend, a few facts, and its identity."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import tokenizers

from shardkit.conversation import IMAGE_MARK
from shardkit.format.canonical import canonical_json, canonical_object, sha256_hex, sha256_of
from shardkit.tokens.facts import SPECIAL, Facts, config_of
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
    given: PreTrainedTokenizerBase | Path | None = field(default=None, repr=False, compare=False)
    """The transformers tokenizer that it was loaded as, or the folder that has it."""
    text: str | None = field(default=None, repr=False, compare=False)
    """What the backend was made from, when that is the text of a tokenizer.json."""
    known: TokenizerIdentity | None = field(default=None, repr=False, compare=False)
    """The identity, when it was computed before."""

    def __reduce__(self) -> tuple[object, ...]:
        known = self.__dict__.get("identity", self.known)
        is_split = self.backend.encode_special_tokens
        return (rebuild, (self.backend_json, self.facts, self.name, None, known, is_split))

    @cached_property
    def backend_json(self) -> str:
        """The backend as the text of a tokenizer.json."""
        return self.backend.to_str() if self.text is None else self.text

    @cached_property
    def hf(self) -> PreTrainedTokenizerBase:
        """The transformers tokenizer: the one it was loaded as, or one around the backend."""
        transformers = importlib.import_module("transformers")
        if isinstance(self.given, Path):
            loaded: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(self.given)
            return loaded
        if self.given is not None:
            return self.given
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
        if self.known is not None:
            return self.known.vocab_size
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def identity(self) -> TokenizerIdentity:
        """The hashes and counts that a manifest keeps."""
        if self.known is not None:
            return self.known
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


def rebuild(
    text: str,
    facts: Facts,
    name: str,
    given: Path | None = None,
    known: TokenizerIdentity | None = None,
    encode_special_tokens: bool = False,
) -> Tokenizer:
    """The tokenizer again, from the text of its backend; transformers is not needed."""
    backend = bare(tokenizers.Tokenizer.from_str(text))
    backend.encode_special_tokens = encode_special_tokens
    return Tokenizer(backend, facts, name, given, text, known)


def bare(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The backend itself, without truncation and padding."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def _templates_sha256(templates: Mapping[str, str]) -> str | None:
    if not templates:
        return None
    if set(templates) == {"default"}:
        return sha256_hex(templates["default"].encode())
    return sha256_of(dict(templates))
