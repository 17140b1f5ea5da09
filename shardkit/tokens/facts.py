"""What does a tokenizer's folder say beside the definition of its backend?

The class it is meant for, its special tokens, its chat templates: read from a transformers object
or from tokenizer_config.json, and written as a tokenizer_config.json that loads offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import tokenizers

from shardkit.errors import TokenizerError

SPECIAL = ("bos", "eos", "pad", "unk")
"""The special tokens whose ids are kept."""
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
    more_special: tuple[str, ...] = ()
    """Special tokens without a role of their own."""
    model_max_length: int | None = None


def facts_of_folder(folder: Path, backend: tokenizers.Tokenizer) -> Facts:
    """The facts in a folder's tokenizer_config.json; none when there is no such file.

    Raises TokenizerError when it is not a JSON object.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return Facts()
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except msgspec.DecodeError as error:
        raise TokenizerError(
            f"not a JSON object: {error}", where=str(path), fix="Correct the file."
        ) from error
    tokens = {f"{name}_token": _content(config.get(f"{name}_token")) for name in SPECIAL}
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
        special_ids={n: backend.token_to_id(special.get(f"{n}_token", "")) for n in SPECIAL},
        special_tokens=special,
        chat_templates=templates,
        more_special=_contents(config.get("additional_special_tokens")),
        model_max_length=_count(config.get("model_max_length")),
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


def facts_of_hf(hf: object) -> Facts:
    """The facts that a transformers tokenizer knows."""
    init = getattr(hf, "init_kwargs", {})
    names = init.get(_CLASSES_KEY) or [type(hf).__name__, init.get("tokenizer_class")]
    template = getattr(hf, "chat_template", None)
    templates = template if isinstance(template, dict) else {"default": template}
    special = getattr(hf, "special_tokens_map", {})
    more = getattr(hf, "additional_special_tokens", None) or getattr(
        hf, "extra_special_tokens", None
    )
    return Facts(
        class_names=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
        special_ids={name: getattr(hf, f"{name}_token_id", None) for name in SPECIAL},
        special_tokens={name: _plain(value) for name, value in special.items()},
        chat_templates={name: text for name, text in templates.items() if isinstance(text, str)},
        more_special=_contents(more),
        model_max_length=_count(getattr(hf, "model_max_length", None)),
    )


def _plain(value: object) -> object:
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)


def config_of(facts: Facts) -> dict[str, object]:
    """A tokenizer_config.json that takes tokenizer.json as it is.

    Not what `save_pretrained` writes: the classes of transformers rebuild the backend from their
    own settings, and some settings (Llama's `legacy`) do not survive saving.
    """
    templates: object = facts.chat_templates.get("default")
    if len(facts.chat_templates) > 1:
        templates = [{"name": n, "template": t} for n, t in sorted(facts.chat_templates.items())]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{n: t for n, t in facts.special_tokens.items() if n != "additional_special_tokens"},
        "additional_special_tokens": list(facts.more_special) or None,
        "model_max_length": facts.model_max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": templates,
        _CLASSES_KEY: list(facts.class_names),
    }
    return {name: value for name, value in config.items() if value is not None}


def _contents(tokens: object) -> tuple[str, ...]:
    """Special tokens of a list, as strings."""
    if not isinstance(tokens, list | tuple):
        return ()
    return tuple(_content(token) or str(token) for token in tokens)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
