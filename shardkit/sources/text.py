"""`text`: pretraining documents."""

from __future__ import annotations

from shardkit.conversation import Conversation, Message, Reason
from shardkit.sources.fields import BadField, as_id
from shardkit.sources.pictures import Gathered, pictures_of
from shardkit.sources.record import Record


def looks_like(record: object) -> bool:
    """Whether a record is a document."""
    if not isinstance(record, dict) or "instruction" in record:
        return False
    return isinstance(record.get("text"), str) or isinstance(record.get("content"), str)


def read(record: Record) -> Conversation:
    """White space around the text is removed, as XTuner's pretrain_map_fn does."""
    fields = record.root()
    key = "text" if "text" in fields else "content"
    words = fields.text(key).strip()
    if not words:
        raise BadField(fields.at(key), "is empty", Reason.EMPTY_TEXT)
    message = Message("assistant", words)
    gathered = Gathered(pictures_of(record, fields))
    gathered.take_marks(words)
    gathered.check([message], has_images=False)
    images = tuple(gathered.images)
    return Conversation((message,), images=images, id=as_id(fields.get("id")), kind="text")
