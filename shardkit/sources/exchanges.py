"""Rows that are one question and one answer, text alone: what most instruction data is.

Of each format the plainest shape of such a row, decoded without a dict, and what it says. All
other rows, and all that could be wrong with one, are for the format's own rules (`formats.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shardkit.conversation import Exchange
from shardkit.sources.turns import FROM, ROLES

NO_OUTPUT = "<nooutput>"


@dataclass(frozen=True)
class PlainRows:
    """How rows of one shape are decoded, and which exchanges they are."""

    shape: type[msgspec.Struct]
    exchange: Callable[[Any], Exchange | None]
    """Of a row of that shape; None when it is for the format's own rules."""
    of_array: msgspec.json.Decoder[list[Any]] = field(init=False)
    of_lines: msgspec.json.Decoder[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_array", msgspec.json.Decoder(list[self.shape]))  # type: ignore[name-defined]
        object.__setattr__(self, "of_lines", msgspec.json.Decoder(self.shape))

    def converted(self, record: object) -> Exchange | None:
        """The exchange of a record that was decoded without the shape; None when it is none."""
        try:
            return self.exchange(msgspec.convert(record, self.shape))
        except msgspec.ValidationError:
            return None


class _Alpaca(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    instruction: str
    input: str
    output: str


class _Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    who: str = msgspec.field(name="from")
    value: str


class _ShareGpt(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    conversations: tuple[_Turn, _Turn]
    id: str | int | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


class _Messages(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: tuple[_Message, _Message]
    id: str | int | None = None


def _of_alpaca(row: _Alpaca) -> Exchange | None:
    if row.output == NO_OUTPUT:
        return None
    return Exchange(f"{row.instruction}\n{row.input}", row.output)


def _of_sharegpt(row: _ShareGpt) -> Exchange | None:
    question, answer = row.conversations
    if FROM.get(question.who) == "user" and FROM.get(answer.who) == "assistant":
        return Exchange(question.value, answer.value)
    return None


def _of_messages(row: _Messages) -> Exchange | None:
    question, answer = row.messages
    if ROLES.get(question.role) == "user" and ROLES.get(answer.role) == "assistant":
        return Exchange(question.content, answer.content)
    return None


ALPACA = PlainRows(_Alpaca, _of_alpaca)
SHAREGPT = PlainRows(_ShareGpt, _of_sharegpt)
MESSAGES = PlainRows(_Messages, _of_messages)
