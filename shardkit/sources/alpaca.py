"""`alpaca`: an instruction with its input and output, or a question and its answer by any name."""

from __future__ import annotations

from collections.abc import Container

import msgspec

from shardkit.conversation import IMAGE_MARK, Conversation, Exchange, Message, Reason
from shardkit.sources import chat
from shardkit.sources.columns import FIXED, RIVALS, advice, columns_of
from shardkit.sources.fields import BadField, as_id, as_list, as_text
from shardkit.sources.pictures import Gathered, at_front, pictures_of
from shardkit.sources.plain_rows import PlainRows
from shardkit.sources.record import Fields, Record, unsupported
from shardkit.sources.row_fields import system_of, thoughts_of, tools_of
from shardkit.sources.unread_keys import said_by

NO_OUTPUT = "<nooutput>"
_OF_QUESTION = ("context", "passage", "choices", "options", "input")
_WATCHED = frozenset((*_OF_QUESTION, *map(str.capitalize, _OF_QUESTION), *RIVALS, "label")) - {
    "input",
    "Input",
    "output",
}
"""Keys that are looked at, of which most rows have none."""
_NOT_ASKED = (
    "it belongs to the question, and is not printed: write it into the question, or name the "
    "columns, as --map instruction=question,input=context,output=answer"
)


def looks_like(record: object) -> bool:
    """Whether a record is a question and its answer, and not the turns of a chat."""
    if not isinstance(record, dict) or chat.has_turns(record):
        return False
    return columns_of(record) is not None


def read(record: Record) -> Conversation:
    """A conversation whose last turn is the record's own; raises BadField.

    Pictures that no text marks stand before that turn's question.
    """
    fields = record.root()
    messages = []
    system = system_of(fields)
    if system:
        messages.append(Message("system", system))
    messages += history_of(fields)
    question, answer = _exchange(fields, record.options.columns or ())
    thoughts = thoughts_of(fields)
    messages += [Message("user", question), Message("assistant", answer, fields=thoughts)]
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
        id=fields.id(),
        tools=tools_of(fields),
    )


def _exchange(fields: Fields, named: Container[str]) -> tuple[str, str]:
    """(question, answer), not stripped, as XTuner; raises BadField.

    An `instruction` has a newline and the input behind it, also when that is empty.
    """
    columns = columns_of(fields.values, named)
    if columns is None:
        for asked, answered in FIXED:
            if asked in fields and answered not in fields:
                fields.text(answered)
        raise BadField("$", f"no question with one answer here. {advice([dict(fields.values)])}")
    question = fields.text(columns.question)
    if columns.question.lower() == "instruction":
        question += "\n" + (fields.text(columns.more) if columns.more else "")
    answer = fields.text(columns.answer)
    if answer == NO_OUTPUT:
        raise BadField(fields.at(columns.answer), "is <nooutput>", Reason.NO_OUTPUT)
    _refuse_others(fields, columns.answer if columns.answer not in named else None)
    return question, answer


def _refuse_others(fields: Fields, answer: str | None) -> None:
    """Raise BadField for what belongs to the question and is written into it nowhere, for a verdict
    on the answer, and for a second answer beside the `answer` that nobody named."""
    watched = _WATCHED if answer == "output" else _WATCHED | {"input", "Input", "output"}
    if not fields.has_any(watched):
        return
    for key, value in fields.rest().items():
        if key.lower() in _OF_QUESTION:
            raise unsupported(fields.at(key), _NOT_ASKED, key)
        if answer == "answer" and key in RIVALS and isinstance(value, str):
            why = f"there is an answer too: --map answer={key} reads this one"
            raise unsupported(fields.at(key), why, key)
        is_verdict = key == "label" and said_by(value) is not None
        if is_verdict and "completion" in fields:
            raise unsupported(fields.at(key), "a verdict on the answer: --task kto reads it", key)


def history_of(fields: Fields) -> list[Message]:
    """The turns before the record's own, pairs of a question and its answer; raises BadField."""
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


PLAIN = PlainRows(_Alpaca, _of_alpaca, read_elsewhere=frozenset(("history", *_OF_QUESTION)))
