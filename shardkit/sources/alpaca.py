"""`alpaca`: an instruction with its input and output, or a question and its answer."""

from __future__ import annotations

import msgspec

from shardkit.conversation import IMAGE_MARK, Conversation, Exchange, Message, Reason
from shardkit.sources.fields import BadField, as_id, as_list, as_text
from shardkit.sources.pictures import Gathered, at_front, pictures_of
from shardkit.sources.plain_rows import PlainRows
from shardkit.sources.record import Fields, Record
from shardkit.sources.row_fields import system_of, tools_of

NO_OUTPUT = "<nooutput>"


def looks_like(record: object) -> bool:
    """Whether a record is an instruction and an output, or a question and an answer."""
    if not isinstance(record, dict):
        return False
    return ("instruction" in record and "output" in record) or (
        "question" in record and "answer" in record
    )


def read(record: Record) -> Conversation:
    """A conversation whose last turn is the record's own; pictures without a mark come first."""
    fields = record.root()
    messages = []
    system = system_of(fields)
    if system:
        messages.append(Message("system", system))
    messages += history_of(fields)
    question, answer = _exchange(fields)
    messages += [Message("user", question), Message("assistant", answer)]
    images = pictures_of(record, fields)
    if images and not any(IMAGE_MARK in message.text for message in messages):
        messages[-2] = at_front(messages[-2], len(images))
    gathered = Gathered(images)
    for message in messages:
        gathered.take_marks(message.text)
    gathered.check(messages, has_images=False)
    return Conversation(
        tuple(messages),
        images=tuple(gathered.images),
        id=as_id(fields.get("id")),
        tools=tools_of(fields),
    )


def _exchange(fields: Fields) -> tuple[str, str]:
    """Instruction, a newline, the input (also when it is empty): no strip, as XTuner."""
    if "instruction" not in fields and "question" in fields:
        return fields.text("question"), fields.text("answer")
    question = fields.text("instruction") + "\n" + (fields.optional_text("input") or "")
    answer = fields.text("output")
    if answer == NO_OUTPUT:
        raise BadField(fields.at("output"), "is <nooutput>", Reason.NO_OUTPUT)
    return question, answer


def history_of(fields: Fields) -> list[Message]:
    """The turns before the record's own: pairs of a question and its answer."""
    messages = []
    for i, item in enumerate(fields.optional_list("history")):
        path = f"{fields.at('history')}[{i}]"
        pair = as_list(item, path)
        if len(pair) != 2:
            raise BadField(path, f"expected a pair, found {len(pair)} values")
        question, reply = (as_text(pair[k], f"{path}[{k}]") for k in range(2))
        messages += [Message("user", question), Message("assistant", reply)]
    return messages


class _Alpaca(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    instruction: str
    output: str
    input: str | None = None
    id: str | int | None = None


def _of_alpaca(row: _Alpaca) -> Exchange | None:
    if row.output == NO_OUTPUT:
        return None
    return Exchange(f"{row.instruction}\n{row.input or ''}", row.output, as_id(row.id))


PLAIN = PlainRows(_Alpaca, _of_alpaca, read_elsewhere=frozenset(("history",)))
