"""Content that is a list of parts, and the switches of the loss."""

from __future__ import annotations

from shardkit.conversation import IMAGE_MARK, Part, Reason
from shardkit.sources.fields import BadField, as_text, kind_of
from shardkit.sources.pictures import Gathered, picture_in
from shardkit.sources.record import Fields, Record, unsupported
from shardkit.sources.tool_calls import calls_of_text
from shardkit.sources.unread_keys import SWITCHES, is_absent, said_by

_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image", "image_url", "input_image")
_MEDIA = ("video", "audio")
_SWITCHES = frozenset(SWITCHES)
_PLACE = "<IMG_CONTEXT>"
"""Where XTuner's texts have the picture that a part beside them names."""
_THOUGHTS = ("reasoning", "thinking")
_CALLS = ("tool_call", "function_call")


def content_of(
    record: Record, items: list[object], path: str, gathered: Gathered
) -> tuple[str, tuple[Part, ...]]:
    """The text of all parts, with a mark for each image, and the parts."""
    parts: list[Part] = []
    for i, item in enumerate(items):
        part = record.object(item, f"{path}[{i}]")
        supervised = not without_loss(part)
        kind = part.get("type")
        if kind is None:
            named = [name for name in ("text", *_IMAGES) if name in part]
            kind = next((name for name in named if part.peek(name) is not None), None)
            kind = kind or next(iter(named), None)  # Arrow gives every part all keys
        if kind in _TEXTS:
            parts.append(Part(_text(part), supervised))
        elif kind in _IMAGES:
            _add_image(record, part, gathered)
            parts.append(Part(None, supervised))
        else:
            _reject_kind(part, kind)
    parts = _placed(parts, path)
    text = "".join(IMAGE_MARK if part.text is None else part.text for part in parts)
    return text, tuple(parts)


def _placed(parts: list[Part], path: str) -> list[Part]:
    """The parts, images where the texts beside them have XTuner's mark for one."""
    n_images = sum(part.text is None for part in parts)
    n_marks = sum(part.text.count(_PLACE) for part in parts if part.text is not None)
    if not n_images or not n_marks:
        return parts
    if n_marks != n_images:
        detail = f"{n_marks} {_PLACE} in the texts, {n_images} images"
        raise BadField(path, detail, Reason.PLACEHOLDER_MISMATCH)
    found: list[Part] = []
    for part in parts:
        for k, words in enumerate([] if part.text is None else part.text.split(_PLACE)):
            found += [Part(None, part.supervised)] if k else []
            found += [Part(words, part.supervised)] if words else []
    return found


def unfolded(item: object, path: str) -> object:
    """A turn whose parts are reasoning and calls too, with these as keys of its own.

    LLaMA-Factory writes `{"type": "reasoning", "value": ...}`. A part that says more than one thing
    stays what it is, and so does a turn that has reasoning or calls already.
    """
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(content, list):
        return item
    thoughts, calls, rest = list[str](), list[object](), list[object]()
    for i, part in enumerate(content):
        kind, words = _only_words(part)
        if kind in _THOUGHTS and isinstance(words, str):
            thoughts.append(words)
        elif kind in _CALLS and not is_absent(words):
            calls += calls_of_text(words, f"{path}.content[{i}]")[0]
        else:
            rest.append(part)
    found: dict[str, object] = {"reasoning_content": "\n".join(thoughts), "tool_calls": calls}
    if not (thoughts or calls) or any(not is_absent(item.get(key)) for key in found):
        return item
    return {**item, **found, "content": rest or ""}


def _only_words(part: object) -> tuple[object, object]:
    """The kind of a part and what it says, where it says nothing else."""
    if not isinstance(part, dict) or len(part) != 2:
        return None, None
    kind = part.get("type")
    return kind, next((value for key, value in part.items() if key != "type"), None)


def _text(part: Fields) -> str:
    for key in ("text", "value", "content"):
        if part.peek(key) is not None:
            return as_text(part.get(key), part.at(key))
    raise BadField(part.at("text"), f"expected a string, found {kind_of(part.get('text'))}")


def _add_image(record: Record, part: Fields, gathered: Gathered) -> None:
    """The part's own picture, or the next one of the record's list."""
    own = picture_in(record, part)
    if own is not None:
        gathered.add(own)
        return
    index = part.get("index")
    is_number = isinstance(index, int) and not isinstance(index, bool)
    if gathered.n_listed or is_number:
        gathered.take(index if is_number else None)  # type: ignore[arg-type]
        return
    raise BadField(part.path, "an image without path, url or image, and the row lists none")


def _reject_kind(part: Fields, kind: object) -> None:
    path = part.at("type")
    if isinstance(kind, str):
        for media in _MEDIA:
            if media in kind:
                why = f"{media}s are not stored" if media == "video" else "audio is not stored"
                raise unsupported(path, f"{kind!r}: {why}", None)
    raise BadField(path, f"unknown content part {kind!r}: text and image parts are read")


def without_loss(fields: Fields) -> bool:
    """Whether a message or part is switched off; BadField for a weight in between.

    Switches are booleans, 0 and 1, or "true" and "false" (XTuner's `loss`, OpenAI's `weight`,
    LLaMA-Factory's `loss_weight` and `loss_mask`, axolotl's `train`, verl's `trainable`).
    """
    if not fields.has_any(_SWITCHES):
        return False
    said: dict[str, bool] = {}
    for key in SWITCHES:
        if is_absent(fields.peek(key)):
            continue
        said[key] = _is_off(fields.get(key), fields, key)
    if len(set(said.values())) > 1:
        names = " and ".join(said)
        raise unsupported(fields.path, f"{names} contradict each other", next(iter(said)))
    return any(said.values())


def _is_off(value: object, fields: Fields, key: str) -> bool:
    found = said_by(value)
    if found is not None:
        return not found
    why = f"only true and false, 0 and 1 are understood, found {_short(value)}"
    raise unsupported(fields.at(key), why, key)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
