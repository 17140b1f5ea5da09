"""When are two tokenizers the same one?

Two hashes decide. `sha256` covers the definition: model, vocabulary, merges, normalizer,
pre-tokenizer, post-processor, decoder, added tokens. `probe_sha256` covers the ids of one fixed
text. Equal definitions give equal ids, so an equal `sha256` is the promise; the probe tells a
reader of a mismatch whether it can be seen in practice (docs/format.md, section 11.3).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from shardkit.errors import TokenizerError

PROBE_TEXT = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it? It's NASA's \u201cbest\u201d "
    "\u2014 e.g. 100.5% of $4,096.00!\n",
    "  leading,  double   triple    quad\t\ttabs\r\n\r\n\n\n trailing \u00a0nbsp \u3000wide "
    "\u200bzero \n ",
    'def f(x: int = 0) -> dict[str, int]:\n    return {"a_b": x ** 2}  # TODO: 0xFF != 1e-9\n'
    "\t\tif x<=3 && y:",
    "Être naïve à São Paulo: Größe, Łódź, Привет мир, γειά σου, שלום עולם, مرحبا بالعالم, "
    "नमस्ते, สวัสดี",
    "今天天气很好，我们去公园散步。東京タワーへ行きました。안녕하세요 세계 𠮷野家 〇",
    "😀👍\U0001f3fd👩\u200d👩\u200d👧 🇩🇪 ☃\ufe0f e\u0301 vs \u00e9 \u212b ﬁ Ⅷ ½ ² → ≤ ∑ ∞ "
    "\U0001d54f \ufffd",
    "<s></s><unk><pad><|endoftext|><|im_start|>user\n<|im_end|>\n<|eot_id|><bos><eos>[INST] "
    "[/INST] <image> <|begin_of_text|><start_of_turn><tool_call>",
    "aaaaaaaaaaaaaaaaaaaaaaaa 1234567890123456789012345 ========---------________ "
    "supercalifragilisticexpialidocious https://example.org/a?b=c&d=%20#e",
    "",
    " ",
    "\n",
    "▁ _▁x▁y",
)
"""The fixed text of the probe hash, in pieces that are encoded one by one. Never edited:
another text would be another hash."""

_EXACT = ("bos", "eos")
"""Special ids that decide tokens. (Training scripts often set `pad_token` as they like.)"""


@dataclass(frozen=True, slots=True)
class TokenizerIdentity:
    """What a manifest keeps of a tokenizer; compare two with `differences`."""

    sha256: str
    probe_sha256: str
    vocab_size: int
    """The highest id + 1."""
    n_added_tokens: int
    parts: Mapping[str, str]
    """The sha256 of each part of the definition, by name."""
    special_ids: Mapping[str, int | None]
    """The ids of bos, eos, pad and unk; None where the tokenizer has none."""
    chat_template_sha256: str | None

    def to_json(self) -> dict[str, object]:
        """The identity as JSON values (docs/format.md, section 11.3)."""
        return {
            "sha256": self.sha256,
            "probe_sha256": self.probe_sha256,
            "vocab_size": self.vocab_size,
            "n_added_tokens": self.n_added_tokens,
            "parts": dict(self.parts),
            "special_ids": dict(self.special_ids),
            "chat_template_sha256": self.chat_template_sha256,
        }

    @classmethod
    def from_json(cls, value: object, where: str = "tokenizer") -> TokenizerIdentity:
        """The identity again.

        Raises TokenizerError, naming the field, when the value is not what `to_json` gives.
        """
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise TokenizerError(
                f"not a tokenizer identity: {error}", where=where, fix="Pack the dataset again."
            ) from error


def differences(packed: TokenizerIdentity, given: TokenizerIdentity) -> list[str]:
    """What keeps `given` from being the tokenizer `packed`, a line each; empty when it is the same.

    The padding and unknown ids and the chat template are not compared: they do not decide the
    tokens (a chat template that does is part of the template's identity).
    """
    lines = []
    if packed.vocab_size != given.vocab_size:
        lines.append(f"vocabulary size: packed with {packed.vocab_size}, given {given.vocab_size}")
    if packed.n_added_tokens != given.n_added_tokens:
        lines.append(
            f"added tokens: packed with {packed.n_added_tokens}, given {given.n_added_tokens}"
        )
    for name in sorted({*packed.parts, *given.parts}):
        if packed.parts.get(name) != given.parts.get(name):
            lines.append(f"{name.replace('_', ' ')} differs")
    for name in _EXACT:
        ours, theirs = packed.special_ids.get(name), given.special_ids.get(name)
        if ours != theirs:
            lines.append(f"{name} id: packed with {ours}, given {theirs}")
    if packed.sha256 != given.sha256 and not lines:
        lines.append(f"definition: packed with {packed.sha256[:12]}, given {given.sha256[:12]}")
    if packed.probe_sha256 != given.probe_sha256:
        lines.append("ids of the probe text differ")
    elif lines:
        lines.append("ids of the probe text are equal")
    return lines


def definition_of(backend_json: str) -> dict[str, object]:
    """The definition of a `tokenizers` backend, without what cannot change an id.

    Runtime truncation and padding are left out, and so is what only moves character offsets
    (`trim_offsets`, a ByteLevel post-processor, a post-processor that adds nothing); fields of
    the model at their defaults, and the two spellings of a merge, are made one.
    """
    with _uncollected():
        return _definition(msgspec.json.decode(backend_json))


def _definition(raw: dict[str, Any]) -> dict[str, object]:
    model = dict(raw["model"])
    vocab, merges = model.pop("vocab", None), model.pop("merges", None)
    return {
        "model": {name: value for name, value in model.items() if not _is_default(name, value)},
        "vocab": vocab,
        "merges": [_pair(merge) for merge in merges] if merges is not None else None,
        "normalizer": raw.get("normalizer"),
        "pre_tokenizer": _without_offsets(raw.get("pre_tokenizer")),
        "post_processor": _effective(_without_offsets(raw.get("post_processor"))),
        "decoder": _settled_decoder(raw.get("decoder")),
        "added_tokens": sorted(raw.get("added_tokens") or [], key=lambda token: token["id"]),
    }


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection meanwhile.

    A vocabulary is half a million small lists without a cycle: looking for one takes longest.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_default(name: str, value: object) -> bool:
    return value is None or value is False or value == "" or (name == "dropout" and value == 0)


def _pair(merge: object) -> object:
    return merge.split(" ") if isinstance(merge, str) else merge


def _without_offsets(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_offsets(v) for k, v in value.items() if k != "trim_offsets"}
    if isinstance(value, list):
        return [_without_offsets(item) for item in value]
    return value


def _effective(processor: object) -> object:
    """A post-processor without the parts that add no token; None when nothing is left."""
    if not isinstance(processor, dict) or processor.get("type") == "ByteLevel":
        return None
    if processor.get("type") == "TemplateProcessing" and not processor.get("special_tokens"):
        return None
    if processor.get("type") == "Sequence":
        kept = [part for part in map(_effective, processor["processors"]) if part is not None]
        if len(kept) < 2:
            return kept[0] if kept else None
        return {"type": "Sequence", "processors": kept}
    return processor


def _settled_decoder(decoder: object) -> object:
    if isinstance(decoder, dict) and decoder.get("type") == "ByteLevel":
        return {"type": "ByteLevel"}
    return decoder
