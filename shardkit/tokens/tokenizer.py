"""What does a pack need to know of a tokenizer? Its backend, its configuration, its identity.

The configuration is what its folder says beside the definition of the backend: the class it is
meant for, its special tokens, its chat templates. It is read from a transformers object or from
tokenizer_config.json, and written as a tokenizer_config.json that loads offline.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import tokenizers

from shardkit.conversation import IMAGE_MARK
from shardkit.errors import TokenizerError
from shardkit.format.canonical import canonical_json, canonical_object, sha256_hex, sha256_of
from shardkit.tokens.identity import PROBE_TEXT, TokenizerIdentity, definition_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("bos", "eos", "pad", "unk")
"""The special tokens whose ids are kept."""
_CLASSES_KEY = "shardkit_class_names"
"""The key in the tokenizer_config.json that we write for the names of the class that the tokenizer
was loaded as, which decide BOS."""
_NO_BOS = frozenset({"QWenTokenizer", "QWen2Tokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"})
_CHATGLM = "ChatGLMTokenizer"
_CHATGLM_BOS = (64790, 64792)


@dataclass(frozen=True)
class TokenizerConfig:
    """What transformers knows about a tokenizer beside its backend."""

    class_names: tuple[str, ...] = ()
    special_ids: Mapping[str, int | None] = field(default_factory=dict)
    special_tokens: Mapping[str, object] = field(default_factory=dict)
    """`special_tokens_map`: what a chat template sees as bos_token, eos_token ..."""
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """Texts of chat templates by name; most tokenizers have `default` only."""
    more_special: tuple[str, ...] = ()
    """Special tokens without a role of their own."""
    model_max_length: int | None = None

    @classmethod
    def of_folder(cls, folder: Path, backend: tokenizers.Tokenizer) -> Self:
        """The tokenizer_config.json of a folder; all defaults when there is no such file.

        Raises TokenizerError when it, or a chat template, cannot be read.
        """
        config, templates = read_config(folder)
        if config is None:
            return cls()
        tokens = {f"{name}_token": _content(config.get(f"{name}_token")) for name in SPECIAL}
        special = {name: token for name, token in tokens.items() if token is not None}
        names = config.get(_CLASSES_KEY) or [config.get("tokenizer_class")]
        return cls(
            class_names=tuple(n for n in names if isinstance(n, str))
            if isinstance(names, list)
            else (),
            special_ids={n: backend.token_to_id(special.get(f"{n}_token", "")) for n in SPECIAL},
            special_tokens=special,
            chat_templates=templates,
            more_special=_contents(config.get("additional_special_tokens")),
            model_max_length=_count(config.get("model_max_length")),
        )

    @classmethod
    def of_hf(cls, hf: object) -> Self:
        """What a transformers tokenizer says of itself."""
        init = getattr(hf, "init_kwargs", {})
        names = init.get(_CLASSES_KEY) or [type(hf).__name__, init.get("tokenizer_class")]
        template = getattr(hf, "chat_template", None)
        templates = template if isinstance(template, dict) else {"default": template}
        special = getattr(hf, "special_tokens_map", {})
        more = getattr(hf, "additional_special_tokens", None) or getattr(
            hf, "extra_special_tokens", None
        )
        return cls(
            class_names=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
            special_ids={name: getattr(hf, f"{name}_token_id", None) for name in SPECIAL},
            special_tokens={name: _plain(value) for name, value in special.items()},
            chat_templates={
                name: text for name, text in templates.items() if isinstance(text, str)
            },
            more_special=_contents(more),
            model_max_length=_count(getattr(hf, "model_max_length", None)),
        )

    def to_json(self) -> dict[str, object]:
        """A tokenizer_config.json that takes tokenizer.json as it is.

        Not what `save_pretrained` writes: the classes of transformers rebuild the backend from
        their own settings, and some settings (Llama's `legacy`) do not survive saving.
        """
        templates: object = self.chat_templates.get("default")
        if len(self.chat_templates) > 1:
            templates = [{"name": n, "template": t} for n, t in sorted(self.chat_templates.items())]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{n: t for n, t in self.special_tokens.items() if n != "additional_special_tokens"},
            "additional_special_tokens": list(self.more_special) or None,
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": False,
            "chat_template": templates,
            _CLASSES_KEY: list(self.class_names),
        }
        return {name: value for name, value in config.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Definition:
    """What a backend is made from when it is first asked for: a plan alone needs none."""

    text: str
    """The text of a tokenizer.json."""
    encode_special_tokens: bool = False

    def made(self) -> tokenizers.Tokenizer:
        """A new backend, without truncation and padding; takes half a second."""
        backend = bare(tokenizers.Tokenizer.from_str(self.text))
        backend.encode_special_tokens = self.encode_special_tokens
        return backend


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that is ready to encode, and its identity. Make one with `load_tokenizer`."""

    source: tokenizers.Tokenizer | Definition
    """The backend, without truncation and padding; or what it is made from."""
    config: TokenizerConfig = field(default_factory=TokenizerConfig)
    name: str = ""
    """What the user called the tokenizer; for messages only."""
    given: PreTrainedTokenizerBase | Path | None = field(default=None, repr=False, compare=False)
    """The transformers tokenizer that it was loaded as, or the folder that has it."""
    text: str | None = field(default=None, repr=False, compare=False)
    """What the backend was made from, when that is the text of a tokenizer.json."""
    known: TokenizerIdentity | None = field(default=None, repr=False, compare=False)
    """The identity, when it was computed before."""

    def __reduce__(self) -> tuple[object, ...]:
        known = self.__dict__.get("identity", self.known)
        backend = self.__dict__.get("backend", self.source)  # one that is not made stays so
        is_split = backend.encode_special_tokens
        return (rebuild, (self.backend_json, self.config, self.name, None, known, is_split))

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers` backend, without truncation and padding."""
        return self.source.made() if isinstance(self.source, Definition) else self.source

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
        tokens = {name: str(token) for name, token in self.config.special_tokens.items()}
        hf: PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            **{name: tokens[name] for name in tokens if name.removesuffix("_token") in SPECIAL},
        )
        hf.chat_template = self.chat_template
        return hf

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """What XTuner puts before a turn: nothing for Qwen, two ids for ChatGLM."""
        if _NO_BOS.intersection(self.config.class_names):
            return ()
        if _CHATGLM in self.config.class_names:
            return _CHATGLM_BOS
        bos = self.config.special_ids.get("bos")
        return () if bos is None else (bos,)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """What ends an answer: the EOS id; empty when the tokenizer has none."""
        eos = self.config.special_ids.get("eos")
        return () if eos is None else (eos,)

    @property
    def chat_template(self) -> str | None:
        """The text of the default chat template; None when there is none."""
        return self.config.chat_templates.get("default")

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
        templates = self.config.chat_templates
        return TokenizerIdentity(
            sha256=sha256_hex(canonical_object(canonical)),
            probe_sha256=sha256_of([encoding.ids for encoding in probe]),
            vocab_size=self.vocab_size,
            n_added_tokens=len(added) if isinstance(added, list) else 0,
            parts={name: sha256_hex(text) for name, text in canonical.items()},
            special_ids={name: self.config.special_ids.get(name) for name in SPECIAL},
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
        config = msgspec.json.format(canonical_json(self.config.to_json()), indent=2)
        backend = msgspec.json.format(self.backend_json.encode(), indent=1)
        return {"tokenizer.json": backend, "tokenizer_config.json": config}


def rebuild(
    text: str,
    config: TokenizerConfig,
    name: str,
    given: Path | None = None,
    known: TokenizerIdentity | None = None,
    encode_special_tokens: bool = False,
) -> Tokenizer:
    """The tokenizer again, from the text of its backend; transformers is not needed."""
    definition = Definition(text, encode_special_tokens)
    return Tokenizer(definition, config, name, given, text, known)


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


def _content(token: object) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with its content."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


class _Named(msgspec.Struct):
    """A chat template in a list of several."""

    name: str
    template: str


_Templates = str | list[_Named] | dict[str, str] | None


def read_config(folder: Path) -> tuple[dict[str, object] | None, dict[str, str]]:
    """The tokenizer_config.json of a folder, None without one, and its chat templates by name.

    Raises TokenizerError, which names the file that cannot be read.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None, {}
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(path, f"not a JSON object: {error}") from error
    try:
        templates = _templates_of(config.get("chat_template"))
    except msgspec.ValidationError as error:
        raise _unreadable(path, f"chat_template: {error}") from error
    path = folder / "chat_template.jinja"
    try:
        if path.is_file():
            templates["default"] = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"cannot be read: {error}") from error
    return config, templates


def _templates_of(value: object) -> dict[str, str]:
    """The chat templates of tokenizer_config.json: one, a list of named ones, or an object."""
    found = msgspec.convert(value, _Templates)
    if isinstance(found, list):
        return {one.name: one.template for one in found}
    return {"default": found} if isinstance(found, str) else found or {}


def _unreadable(path: Path, problem: str) -> TokenizerError:
    fix = "Correct the file, or fetch the tokenizer again."
    return TokenizerError(problem, where=str(path), fix=fix)


def _plain(value: object) -> object:
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)


def _contents(tokens: object) -> tuple[str, ...]:
    """Special tokens of a list, as strings."""
    if not isinstance(tokens, list | tuple):
        return ()
    return tuple(_content(token) or str(token) for token in tokens)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
