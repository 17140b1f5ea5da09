"""`tokenized`: rows of ids and labels, as XTuner's offline tools save them."""

from __future__ import annotations

from shardkit.conversation import Conversation, Reason
from shardkit.sources.fields import BadField
from shardkit.sources.pictures import pictures_of
from shardkit.sources.record import Fields, Record
from shardkit.sources.tables import as_ints


def looks_like(record: object) -> bool:
    """Whether a record holds ids and labels."""
    return isinstance(record, dict) and "input_ids" in record and "labels" in record


def is_packed(record: object) -> bool:
    """Whether a record is a pack of several samples already."""
    return isinstance(record, dict) and record.get("cumulative_len") is not None


def read(record: Record) -> Conversation:
    """The ids and labels as they are; raises BadField."""
    fields = record.root()
    ids, labels = _ints(fields, "input_ids"), _ints(fields, "labels")
    if len(ids) != len(labels):
        detail = f"{len(labels)} labels for {len(ids)} input_ids"
        raise BadField(fields.at("labels"), detail, Reason.BAD_TOKENS)
    cuts = _ints(fields, "cumulative_len") if fields.get("cumulative_len") is not None else ()
    return Conversation(
        (),
        images=tuple(pictures_of(record, fields)),
        id=fields.id(),
        kind="tokens",
        ids=ids,
        labels=labels,
        cuts=cuts,
    )


def _ints(fields: Fields, key: str) -> tuple[int, ...]:
    try:
        return as_ints(fields.get(key))
    except (TypeError, ValueError, OverflowError):
        raise BadField(fields.at(key), "expected a list of integers", Reason.BAD_TOKENS) from None
