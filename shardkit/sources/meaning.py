"""Which keys of a record change what it means: they are used, or their row is rejected by name."""

from __future__ import annotations

import re
from functools import lru_cache

_NO_MEDIA = "{}s are not stored"
_PREFERENCE = "this is preference data: --task preference packs pairs, --task kto labelled answers"
_UNKNOWN = "it is not understood here"

WORDS: dict[str, str] = {
    **dict.fromkeys(("video", "clip"), _NO_MEDIA.format("video")),
    **dict.fromkeys(("audio", "speech", "sound"), "audio is not stored"),
    **dict.fromkeys(("chosen", "rejected", "kto", "preference", "preferred"), _PREFERENCE),
    **dict.fromkeys(("reasoning", "thinking", "thought", "think"), _UNKNOWN),
    **dict.fromkeys(("weight", "mask", "loss"), _UNKNOWN),
    **dict.fromkeys(("train", "trainable", "training"), _UNKNOWN),
    **dict.fromkeys(("tool", "function"), _UNKNOWN),
    **dict.fromkeys(("image", "img", "picture", "photo"), _UNKNOWN),
    **dict.fromkeys(("system", "developer"), _UNKNOWN),
}
"""The first word of such a key (`tool` of `tool_calls` and `toolCalls`), and what is wrong with
it where nobody reads it."""
ENDS = ("mask", "weight")
"""The last word of such a key, as in `answer_mask` and `sample_weight`."""
PIXELS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""Qwen-VL's own size of a picture, on its content part."""
_BOOKKEEPING = frozenset(
    (
        *("id", "ids", "width", "height", "size", "shape", "count", "number", "num"),
        *("source", "license", "hash", "sha", "sha256", "md5", "time", "date", "version"),
    )
)
"""A last word that makes it a fact about the thing: `image_id`, `tool_count`."""
_HARMLESS = ("attention_mask", "special_tokens_mask")
SWITCHES = ("weight", "train", "trainable", "training", "loss", "loss_mask", "loss_weight")
"""Keys that switch the loss of a message, or of a part of one, on or off."""
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def why_it_matters(key: str, value: object, has_preference: bool) -> str | None:
    """What is wrong with a value that nobody read; None when it is only counted.

    `has_preference`: whether `chosen` or `rejected` stands beside it, so that `score` is theirs.
    """
    if key in SWITCHES and is_on(value):
        return None
    if key == "label":
        return _PREFERENCE if isinstance(value, bool) else None
    if key == "score" or key.startswith("score_"):
        return _PREFERENCE if has_preference else None
    return _meaning_of(key)


def is_on(value: object) -> bool:
    """Whether a switch says what is so without it."""
    return (isinstance(value, int | float) and value == 1) or (
        isinstance(value, str) and value.lower() == "true"
    )


def is_absent(value: object) -> bool:
    """Whether a value says as much as no value: null, "" and []."""
    return value is None or value == "" or value == []


@lru_cache(maxsize=4096)
def _meaning_of(key: str) -> str | None:
    if key in PIXELS:
        return _UNKNOWN
    words = [word.lower() for word in _WORD.findall(key)]
    if not words or key in _HARMLESS or words[-1] in _BOOKKEEPING:
        return None
    first = words[0]
    found = WORDS.get(first) or WORDS.get(first.removesuffix("s"))
    if found is None and words[-1].removesuffix("s") in ENDS:
        found = _UNKNOWN
    return found
