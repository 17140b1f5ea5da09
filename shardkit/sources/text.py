"""`text`: pretraining documents."""

from __future__ import annotations

from collections.abc import Mapping

from shardkit.conversation import Conversation, Message, Reason
from shardkit.sources.fields import BadField
from shardkit.sources.pictures import Gathered, pictures_of
from shardkit.sources.record import Record
from shardkit.sources.turns import role_of

ONE_MESSAGE = "a row is one message: write a whole conversation into each, as `messages`"


def looks_like(record: object) -> bool:
    """Whether a record is a document."""
    if not isinstance(record, dict) or "instruction" in record or is_turn(record):
        return False
    return isinstance(record.get("text"), str) or isinstance(record.get("content"), str)


def is_turn(record: Mapping[str, object]) -> bool:
    """Whether a record is one message of a chat, which is no document."""
    who = record.get("role") or record.get("from")
    return isinstance(who, str) and role_of(who) is not None


def read(record: Record) -> Conversation:
    """The text, stripped of white space as by XTuner's pretrain_map_fn; raises BadField."""
    fields = record.root()
    if is_turn(fields.values):
        raise BadField("$", ONE_MESSAGE)
    key = "text" if "text" in fields else "content"
    words = fields.text(key).strip()
    if not words:
        raise BadField(fields.at(key), "is empty", Reason.EMPTY_TEXT)
    message = Message("assistant", words)
    gathered = Gathered(pictures_of(record, fields))
    gathered.take_marks(words)
    gathered.check([message], has_images=False)
    images = tuple(gathered.images)
    return Conversation((message,), images=images, id=fields.id(), kind="text")
