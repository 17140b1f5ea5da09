"""`webdataset`: samples of a tar, pictures with a caption or a conversation."""

from __future__ import annotations

from msgspec.structs import replace

from shardkit.conversation import IMAGE_MARK, Conversation, Message
from shardkit.sources import alpaca, chat
from shardkit.sources.fields import BadField, as_object, as_text
from shardkit.sources.pictures import COLUMNS, picture
from shardkit.sources.record import Fields, Record, unsupported
from shardkit.sources.tars import KEY

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_CAPTIONS = ("caption", "text")
_MEDIA = {
    **dict.fromkeys(("mp4", "avi", "mov", "mkv", "webm"), "videos are not stored"),
    **dict.fromkeys(("mp3", "wav", "flac", "ogg", "m4a"), "audio is not stored"),
}


def looks_like(record: object) -> bool:
    """Whether a record is a sample of a tar."""
    return isinstance(record, dict) and KEY in record


def read(record: Record) -> Conversation:
    """A caption becomes the answer to its pictures; a conversation or question keeps its words."""
    members = record.root()
    key = as_text(members.get(KEY), "$")
    pictures = _pictures(members, key)
    inner = _json(members)
    caption = _caption(record, members, inner)
    if caption is not None:
        if not pictures:
            raise BadField("$", f"{key} has a caption and no picture")
        question = Message("user", IMAGE_MARK * len(pictures))
        images = tuple(picture(record, one, "$") for one in pictures)
        return Conversation((question, Message("assistant", caption)), images=images, id=key)
    if pictures:
        inner = {name: value for name, value in inner.items() if name not in COLUMNS}
        inner["images"] = pictures
    record.value = inner
    if chat.looks_like(inner):
        found = chat.read(record, shows_first=True)
    elif alpaca.looks_like(inner):
        found = alpaca.read(record)
    else:
        raise BadField("$", f"{key} has no caption (.txt, or {_CAPTIONS} in .json) and no turns")
    return found if found.id is not None else replace(found, id=key)


def _pictures(members: Fields, key: str) -> list[object]:
    """The picture members, as cells of a table hold them; video and audio are refused."""
    found: list[object] = []
    for name in members.values:
        last = name.rpartition(".")[2]
        if last in _MEDIA:
            raise unsupported(members.at(name), _MEDIA[last], name)
        if last in PICTURES:
            found.append({"bytes": members.get(name), "path": f"{key}.{name}"})
    return found


def _json(members: Fields) -> dict[str, object]:
    value = members.get("json") if "json" in members else {}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {"messages": value}
    return dict(as_object(value, members.at("json")))


def _caption(record: Record, members: Fields, inner: dict[str, object]) -> str | None:
    """The `.txt` member, or the caption in `.json` where that holds no turns."""
    if chat.looks_like(inner) or alpaca.looks_like(inner):
        return None
    opened = record.object(inner, members.at("json"))
    if "txt" in members:
        return members.text("txt")
    key = next((key for key in _CAPTIONS if key in opened), None)
    return None if key is None else opened.text(key)
