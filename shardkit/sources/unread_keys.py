"""Which keys of a record change what it means: they are used, or their row is rejected by name."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

_NO_MEDIA = "{}s are not stored"
_TURNS = "it is a second list of turns, and one is read: --map messages=NAME chooses"
_PICTURE = "it is a picture, a video or a sound that nobody reads"
_PREFERENCE = "this is preference data: --task preference packs pairs, --task kto labelled answers"
_UNKNOWN = "it is not understood here"
_NO_PICTURE = "it is not understood here: of a row, --map images=NAME reads it"
_OF_TEMPLATE = "it sets the chat template for this row alone: --template-arg sets it for all rows"
_BOXES = "boxes are not written into the text: put them where <bbox> stands"

WORDS: dict[str, str] = {
    **dict.fromkeys(("video", "clip"), _NO_MEDIA.format("video")),
    **dict.fromkeys(("audio", "speech", "sound"), "audio is not stored"),
    **dict.fromkeys(("chosen", "rejected", "kto", "preference", "preferred"), _PREFERENCE),
    **dict.fromkeys(("reasoning", "thinking", "thought", "think", "cot", "rationale"), _UNKNOWN),
    **dict.fromkeys(("weight", "mask", "loss"), _UNKNOWN),
    **dict.fromkeys(("train", "trainable", "training"), _UNKNOWN),
    **dict.fromkeys(("tool", "function"), _UNKNOWN),
    **dict.fromkeys(("image", "img", "picture", "photo", "screenshot"), _NO_PICTURE),
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp"), _NO_PICTURE),
    **dict.fromkeys(("system", "developer"), _UNKNOWN),
}
"""The first word of such a key (`tool` of `tool_calls` and `toolCalls`), and what is wrong with
it where nobody reads it."""
ENDS = ("mask", "weight")
"""The last word of a key that nobody may read over: `answer_mask`, `sample_weight`."""
TEXT_ENDS = (
    *("video", "audio", "image", "img", "picture", "photo", "screenshot"),
    *("chosen", "rejected", "reasoning", "thinking", "thought", "cot", "rationale"),
)
"""The last word of a key that matters where its value is a text, a list or an object, as in
`source_image`; with `chosen` and `rejected` also where it is true or false."""
LIST_ENDS = ("tool", "function", "media")
"""The last word of a key that matters where its value is a list or an object, or the JSON text of
one, as in `available_tools`."""
_MAGIC = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*"),
    *(b"ID3", b"\xff\xfb", b"OggS", b"fLaC", b"\x1aE\xdf\xa3"),
)
"""First bytes of picture, sound and video files; MP4 has them at its fifth byte."""
_DATA_URLS = ("data:image/", "data:video/", "data:audio/")
_FACTS = (
    *("model", "name", "policy", "length"),
    *("score", "rating", "rank", "ranking", "margin", "reward", "logp", "logprob", "prob"),
    *("avg", "mean", "index", "idx"),
)
"""The last word of a key that says something about the answers of a pair, without the words
`chosen` and `rejected`: `score_chosen`, `chosen_model`. It changes no token."""
PIXELS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""Qwen-VL's own size of a picture, on its content part."""
_BOOKKEEPING = frozenset(
    (
        *("id", "ids", "width", "height", "wh", "hw", "size", "shape", "count", "number", "num"),
        *("source", "license", "hash", "sha", "sha256", "md5", "time", "date", "version", "type"),
    )
)
"""The last word of a key that is a fact about a thing, not the thing: `image_id`, `tool_count`."""
_HARMLESS = ("attention_mask", "special_tokens_mask")
TEMPLATE_ARGUMENTS = ("chat_template_kwargs", "template_kwargs", "chat_template", "enable_thinking")
"""Keys that choose or set the chat template of their row (TRL reads the first)."""
SWITCHES = (
    *("weight", "train", "trainable", "training", "loss", "loss_mask", "loss_weight"),
    "output_with_loss",
)
"""Keys that switch the loss of a message, or of a part of one, on or off."""
_SAID = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_SWITCHED = ("loss", "train", "training", "trainable", "mask", "masked", "supervised")
"""The last word of a key whose truth value is a switch of the loss, as `is_train`, `no_loss`."""
_NOT = (
    "no",
    "not",
    "dont",
    "without",
    "ignore",
    "ignored",
    "skip",
    "exclude",
    "excluded",
    "masked",
)
"""The first word of a switch that is the other way round, or all of it."""
_COUNTS = ("n", "num", "count", "total")
"""The first word of a key that counts, and so is no switch: `n_train`."""
_VERDICTS = ("chosen", "rejected", "desirable", "undesirable")
Sort = Literal["number", "truth", "text", "list"]
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def why_it_matters(key: str, value: object, has_preference: bool) -> str | None:
    """What is wrong with a value that nobody read; None when it is only counted.

    `has_preference`: whether `chosen` or `rejected` stands beside it, so that `score` is theirs.
    """
    if key in SWITCHES and said_by(value) is True:
        return None
    return why_the_key_matters(key, value, has_preference) or why_the_value_matters(value)


def why_the_key_matters(key: str, value: object, has_preference: bool) -> str | None:
    """What is wrong with a value that nobody read, as far as its key's name says it."""
    if key == "label":
        return _PREFERENCE if isinstance(value, bool) or value in _VERDICTS else None
    neutral = _neutral_of(key)
    if neutral is not None and said_by(value) is (not neutral):
        return _UNKNOWN
    if key in TEMPLATE_ARGUMENTS:
        given = list(value.values()) if isinstance(value, dict) else [value]
        return None if all(map(is_absent, given)) else _OF_TEMPLATE
    if key == "objects" and isinstance(value, dict) and "bbox" in value:
        return _BOXES
    if key == "score" or key.startswith("score_"):
        return _PREFERENCE if has_preference else None
    return _meaning_of(key, _sort_of(value))


def is_fact(key: str, value: object) -> bool:
    """Whether a key beside a pair is a score of its answers, or says who wrote them.

    Never what stands beside something that is used or named elsewhere, as `tool_name`.
    """
    words = _words_of(key)
    if not words or why_the_value_matters(value):
        return False
    found = WORDS.get(words[0]) or WORDS.get(words[0].removesuffix("s"))
    if found not in (None, _PREFERENCE):
        return False
    last = next((word for word in reversed(words) if word not in ("chosen", "rejected")), "")
    return last.removesuffix("s") in _FACTS


def why_the_value_matters(value: object) -> str | None:
    """What is wrong with a value whatever its key is called: other turns, pictures, sounds."""
    if isinstance(value, list):
        value = next((item for item in value if item is not None), None)
        if isinstance(value, dict) and _is_turn(value):
            return _TURNS
    if isinstance(value, dict):
        if "sampling_rate" in value:
            return _PICTURE
        value = value.get("bytes")
    if isinstance(value, str):
        return _PICTURE if value.startswith(_DATA_URLS) else None
    if isinstance(value, bytes):
        return _PICTURE if value.startswith(_MAGIC) or value[4:8] == b"ftyp" else None
    return None


def _is_turn(value: dict[str, object]) -> bool:
    has_role = isinstance(value.get("role"), str) or isinstance(value.get("from"), str)
    return has_role and any(key in value for key in ("content", "value", "text", "tool_calls"))


def _sort_of(value: object) -> Sort:
    """What a value is, as far as the ends of keys ask."""
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    is_json = isinstance(value, str) and value.lstrip()[:1] in ("[", "{")
    return "list" if is_json or isinstance(value, list | dict) else "text"


def said_by(value: object) -> bool | None:
    """What a switch says: true, false, 1, 0, or the same as text; None for anything else."""
    if isinstance(value, str):
        return _SAID.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def is_absent(value: object) -> bool:
    """Whether a value says as much as no value: null, "", [] and pandas' NaN."""
    return value is None or value == "" or value == [] or value != value


def is_switch(key: str) -> bool:
    """Whether a key is one of a switch of the loss, so that its value must be looked at."""
    return _neutral_of(key) is not None


@lru_cache(maxsize=4096)
def _neutral_of(key: str) -> bool | None:
    """What a switch of the loss says that changes nothing; None for a key that is no switch."""
    words = _words_of(key)
    if not words or words[0] in _COUNTS:
        return None
    if words[0] in _NOT and (len(words) == 1 or words[-1] in _SWITCHED):
        return False
    return True if words[-1] in _SWITCHED else None


@lru_cache(maxsize=4096)
def _meaning_of(key: str, sort: Sort) -> str | None:
    if key in PIXELS:
        return _UNKNOWN
    words = _words_of(key)
    if not words or key in _HARMLESS or words[-1] in _BOOKKEEPING:
        return None
    first, last = words[0], words[-1].removesuffix("s")
    found = WORDS.get(first) or WORDS.get(first.removesuffix("s"))
    if found is None and last in ENDS:
        found = _UNKNOWN
    is_said = sort in ("text", "list") or (sort == "truth" and last in ("chosen", "rejected"))
    if found is None and last in TEXT_ENDS and is_said:
        found = WORDS[last]
    return _UNKNOWN if found is None and last in LIST_ENDS and sort == "list" else found


def _words_of(key: str) -> list[str]:
    """The words of a key in small letters, however they are joined."""
    return [word.lower() for word in _WORD.findall(key.replace("CoT", "Cot"))]
