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
from shardkit.format.canonical import canonical_json, sha256_hex, sha256_of
from shardkit.tokens.identity import PROBE_TEXT, TokenizerIdentity, definition_of, parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenizerLike = "str | Path | PreTrainedTokenizerBase | tokenizers.Tokenizer | Tokenizer"

_NO_BOS = frozenset({"QWenTokenizer", "QWen2Tokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"})
_CHATGLM = "ChatGLMTokenizer"
_CHATGLM_BOS = (64790, 64792)
_SPECIAL = ("bos", "eos", "pad", "unk")
_CLASSES_KEY = "shardkit_class_names"
"""In the tokenizer_config.json that we write: the class it was loaded as (it decides BOS)."""


@dataclass(frozen=True)
class Facts:
    """What transformers knows about a tokenizer beside its backend."""

    class_names: tuple[str, ...] = ()
    special_ids: Mapping[str, int | None] = field(default_factory=dict)
    special_tokens: Mapping[str, object] = field(default_factory=dict)
    """`special_tokens_map`: what a chat template sees as bos_token, eos_token ..."""
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """By name; most tokenizers have `default` only."""


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
            **{name: tokens[name] for name in tokens if name.removesuffix("_token") in _SPECIAL},
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
        added = definition["added_tokens"]
        probe = self.backend.encode_batch(list(PROBE_TEXT), add_special_tokens=False)
        templates = self.facts.chat_templates
        return TokenizerIdentity(
            sha256=sha256_of(definition),
            probe_sha256=sha256_of([encoding.ids for encoding in probe]),
            vocab_size=self.vocab_size,
            n_added_tokens=len(added) if isinstance(added, list) else 0,
            parts=parts_of(definition),
            special_ids={name: self.facts.special_ids.get(name) for name in _SPECIAL},
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
        raw = msgspec.json.decode(self.backend_json)
        raw.update(truncation=None, padding=None)
        config = msgspec.json.format(canonical_json(_config_of(self)), indent=2)
        backend = msgspec.json.format(msgspec.json.encode(raw), indent=1)
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
    return Tokenizer(_bare(backend), _facts_of_files(path.parent, backend), name=str(path))


def _facts_of_files(folder: Path, backend: tokenizers.Tokenizer) -> Facts:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return Facts()
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except msgspec.DecodeError as error:
        raise TokenizerError(
            f"not a JSON object: {error}", where=str(path), fix="Correct the file."
        ) from error
    tokens = {f"{name}_token": _content(config.get(f"{name}_token")) for name in _SPECIAL}
    special = {name: token for name, token in tokens.items() if token is not None}
    template = folder / "chat_template.jinja"
    templates = _templates_of(config.get("chat_template"))
    if template.is_file():
        templates["default"] = template.read_text(encoding="utf-8")
    names = config.get(_CLASSES_KEY) or [config.get("tokenizer_class")]
    return Facts(
        class_names=tuple(n for n in names if isinstance(n, str))
        if isinstance(names, list)
        else (),
        special_ids={n: backend.token_to_id(special.get(f"{n}_token", "")) for n in _SPECIAL},
        special_tokens=special,
        chat_templates=templates,
    )


def _content(token: object) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with its content."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _templates_of(value: object) -> dict[str, str]:
    """The chat templates of tokenizer_config.json: one, or a list of named ones."""
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list):
        return {}
    return {str(one["name"]): str(one["template"]) for one in value if isinstance(one, dict)}


def _auto_tokenizer(source: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    name = str(source)
    looks_local = isinstance(source, Path) or name.startswith((".", "/", "~")) or os.sep * 2 in name
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
    return Tokenizer(backend, _facts_of(hf), name=name, given=hf)  # type: ignore[arg-type]


def _facts_of(hf: object) -> Facts:
    init = getattr(hf, "init_kwargs", {})
    names = init.get(_CLASSES_KEY) or [type(hf).__name__, init.get("tokenizer_class")]
    template = getattr(hf, "chat_template", None)
    templates = template if isinstance(template, dict) else {"default": template}
    special = getattr(hf, "special_tokens_map", {})
    return Facts(
        class_names=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
        special_ids={name: getattr(hf, f"{name}_token_id", None) for name in _SPECIAL},
        special_tokens={name: _plain(value) for name, value in special.items()},
        chat_templates={name: text for name, text in templates.items() if isinstance(text, str)},
    )


def _plain(value: object) -> object:
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)


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


def _config_of(tokenizer: Tokenizer) -> dict[str, object]:
    """A tokenizer_config.json that takes tokenizer.json as it is.

    Not what `save_pretrained` writes: the classes of transformers rebuild the backend from their
    own settings, and some settings (Llama's `legacy`) do not survive saving.
    """
    hf, facts = tokenizer.given, tokenizer.facts
    extra = getattr(hf, "additional_special_tokens", None) or getattr(
        hf, "extra_special_tokens", None
    )
    templates: object = facts.chat_templates.get("default")
    if len(facts.chat_templates) > 1:
        templates = [{"name": n, "template": t} for n, t in sorted(facts.chat_templates.items())]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{n: t for n, t in facts.special_tokens.items() if n != "additional_special_tokens"},
        "additional_special_tokens": [str(t) for t in extra] if isinstance(extra, list) else None,
        "model_max_length": getattr(hf, "model_max_length", None),
        "clean_up_tokenization_spaces": False,
        "chat_template": templates,
        _CLASSES_KEY: list(facts.class_names),
    }
    return {name: value for name, value in config.items() if value is not None}
