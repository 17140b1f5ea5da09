"""Pictures of a record (paths, bytes in a cell, data URLs, base64), and the mark of each."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

import xxhash
from msgspec.structs import replace

from shardkit.conversation import IMAGE_MARK, EmbeddedImage, ImageRef, Message, Part, Reason
from shardkit.sources.fields import BadField, as_text, kind_of
from shardkit.sources.record import Fields, Record, unsupported
from shardkit.sources.unread_keys import is_absent

COLUMNS = ("images", "image")
_BYTES = ("bytes", "base64", "data")
_PATHS = ("path", "url", "image", "image_url", "value", "file_name")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*\Z")
_BEGINS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")
"""Base64 of the first bytes of JPEG, PNG, GIF, WebP, BMP and TIFF."""
_NAMED = re.compile(r"<img>[^<>\n]{1,300}</img>")
"""Qwen-VL's first way to name a picture."""
_LEAST_BASE64 = 64
"""Characters of a text that may be base64, at least; a shorter one is a path."""


def pictures_of(record: Record, fields: Fields) -> list[ImageRef]:
    """The pictures that an object names: a path, a list of paths or objects, or none."""
    for key in COLUMNS:
        value = fields.peek(key)
        if is_absent(value):
            continue
        fields.get(key)
        items = value if isinstance(value, list) else [value]
        return [picture(record, item, f"{fields.at(key)}[{i}]") for i, item in enumerate(items)]
    return []


def picture(record: Record, value: object, path: str) -> ImageRef:
    """One picture, of its path, its bytes, or an object that holds one; raises BadField."""
    if isinstance(value, dict):
        found = picture_in(record, record.object(value, path))
        if found is None:
            raise BadField(path, "an image without bytes, path, url or image")
        return found
    if isinstance(value, bytes):
        return _embedded(value, None)
    return _from_text(as_text(value, path), path)


def picture_in(record: Record, fields: Fields) -> ImageRef | None:
    """The picture that an object holds: bytes win over a path; None when it has neither."""
    data: bytes | None = None
    for key in _BYTES:
        if data is None and not is_absent(fields.peek(key)):
            data = _as_bytes(fields.get(key), fields.at(key))
    for key in _PATHS:
        value = fields.peek(key)
        if is_absent(value):
            continue
        fields.get(key)
        if data is None:
            return picture(record, value, fields.at(key))
        return _embedded(data, value if isinstance(value, str) else None)
    return None if data is None else _embedded(data, None)


def _as_bytes(value: object, path: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        found = _from_text(value, path, must_be_bytes=True)
        return found.data if isinstance(found, EmbeddedImage) else found.encode()
    raise BadField(path, f"expected the bytes of an image, found {kind_of(value)}")


def _from_text(text: str, path: str, must_be_bytes: bool = False) -> ImageRef:
    """A path, or the bytes that a data URL or base64 text spells."""
    if text[:5].lower() == "data:":
        return _embedded(_of_data_url(text, path), None)
    is_base64 = len(text) >= _LEAST_BASE64 and text.startswith(_BEGINS)
    if must_be_bytes or (is_base64 and _BASE64.match(text)):
        try:
            return _embedded(base64.b64decode(text, validate=not is_base64), None)
        except (binascii.Error, ValueError):
            if must_be_bytes:
                raise BadField(path, "not base64", Reason.IMAGE_UNREADABLE) from None
    return text


def _of_data_url(text: str, path: str) -> bytes:
    head, comma, body = text.partition(",")
    kind = head[5:].split(";")[0].strip().lower()
    if kind.split("/")[0] in ("video", "audio"):
        raise unsupported(path, f"{kind} is not stored", None)
    try:
        if not comma:
            raise ValueError
        if head.lower().rstrip().endswith(";base64"):
            return base64.b64decode(unquote_to_bytes(body))
        return unquote_to_bytes(body)
    except (binascii.Error, ValueError):
        raise BadField(path, f"a broken data URL: {text[:40]!r}", Reason.IMAGE_UNREADABLE) from None


def _embedded(data: bytes, name: str | None) -> EmbeddedImage:
    return EmbeddedImage(name or f"xxh3-{xxhash.xxh3_64_hexdigest(data)}", data)


class Gathered:
    """The pictures of a conversation in reading order, while its messages are read."""

    def __init__(self, waiting: Sequence[ImageRef]) -> None:
        self.images: list[ImageRef] = []
        self._waiting = list(waiting)
        """The record's own list; a mark takes the next one."""
        self.n_listed = len(self._waiting)
        self._n_taken = 0
        self.n_missing = 0
        """Marks that no picture was left for."""

    def add(self, image: ImageRef) -> None:
        """A picture that its content part brought along."""
        self.images.append(image)

    def take(self, index: int | None = None) -> None:
        """The next picture of the record's list, or the one that the part names by number."""
        at = self._n_taken if index is None else index
        if not 0 <= at < self.n_listed:
            self.n_missing += 1
            return
        self._n_taken += 1
        self.images.append(self._waiting[at])

    def take_marks(self, text: str) -> None:
        """A picture for each mark in a text, where the record lists any."""
        if self.n_listed:
            for _ in range(text.count(IMAGE_MARK)):
                self.take()

    def check(self, messages: Sequence[Message], has_images: bool) -> None:
        """BadField unless each mark has its picture and each picture its mark."""
        n_images = len(self.images)
        if not (has_images or n_images or self.n_listed or self.n_missing):
            return
        n_marks = sum(message.text.count(IMAGE_MARK) for message in messages)
        n_left = self.n_listed - self._n_taken
        if n_left and not self._n_taken and self._waiting == self.images:
            n_left = 0
        is_right = n_marks == n_images and not self.n_missing and not n_left
        if is_right:
            in_text = next(filter(None, (_NAMED.search(one.text) for one in messages)), None)
            if in_text is None:
                return
            why = (
                f"{in_text[0]!r} stands in a text: {IMAGE_MARK} there and a list `images` are read"
            )
            raise BadField("$", why, Reason.PLACEHOLDER_MISMATCH)
        detail = f"{n_marks} placeholders, {max(n_images + n_left, self.n_listed)} images"
        raise BadField("$", detail, Reason.PLACEHOLDER_MISMATCH)


def at_front(message: Message, n: int, between: str = "\n") -> Message:
    """The message with n pictures before its words; `between`: what parts them in a text."""
    if not n:
        return message
    marks = IMAGE_MARK * n
    parts = (*[Part()] * n, *message.parts) if message.parts else ()
    return replace(message, text=f"{marks}{between}{message.text}", parts=parts)


def show_first(messages: list[Message], gathered: Gathered, between: str = "\n") -> None:
    """Pictures that nothing marks stand before the first question (FineVision, TRL's pairs)."""
    is_marked = any(IMAGE_MARK in message.text for message in messages)
    first = next((i for i, one in enumerate(messages) if one.role == "user"), None)
    if is_marked or first is None or not gathered.n_listed:
        return
    messages[first] = at_front(messages[first], gathered.n_listed, between)
    gathered.take_marks(messages[first].text)
