"""What of a row is trained, what is put right in it first, and what becomes of one too long?

These are the options of a pack that decide it for every template; the recipe keeps them. Each is
off, or the harmless choice, unless a user asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import msgspec.structs

from shardkit.conversation import Conversation, Message, Part, Role
from shardkit.errors import UsageError

History = Literal["reject", "split", "last"]
ToolCalls = Literal["normal", "raw"]
Overlong = Literal["cut", "drop", "split"]


@dataclass(frozen=True, slots=True)
class TrainRules:
    """What becomes of rows under a template."""

    train_on: str = "all"
    """`all`: every answer; `last`: the last answer; or roles, separated by commas."""
    history: History = "reject"
    """Where a chat template prints earlier answers differently when more messages follow: reject
    the row, split it into one sample an answer, or train its last answer alone."""
    train_empty_think: bool = False
    """Whether an empty think block, which a template invents, is in the loss."""
    tool_calls: ToolCalls = "normal"
    """`normal`: arguments that are the JSON text of an object become the object, and turns that
    are a call become tool calls, where the template takes that. `raw`: as the record has them."""
    fold_system: bool = False
    """Whether a system message goes before the first question, where the template takes none."""
    overlong: Overlong = "cut"
    """A row that is longer than max_length keeps its head, is rejected, or, being a document,
    becomes several samples."""
    append_eos: bool = False
    """Whether documents end with the EOS token, in the loss."""

    def __post_init__(self) -> None:
        _check_choice("history", self.history, get_args(History))
        _check_choice("tool_calls", self.tool_calls, get_args(ToolCalls))
        _check_choice("overlong", self.overlong, get_args(Overlong))
        if not is_train_on(self.train_on):
            raise UsageError(
                "train_on names no such role",
                expected=f"all, last, or some of {', '.join(get_args(Role))} with commas between",
                found=self.train_on,
                fix="Give --train-on one of these.",
            )

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> TrainRules:
        """The rules that a dataset's recipe names; those that it does not are the default."""
        return cls(**{f.name: recipe[f.name] for f in fields(cls) if f.name in recipe})

    @property
    def roles(self) -> frozenset[str]:
        """The roles whose messages are in the loss."""
        if self.train_on in ("all", "last"):
            return frozenset({"assistant"})
        return frozenset(self.train_on.split(","))

    def wanted(self, messages: Sequence[Message]) -> list[int]:
        """Which messages are in the loss."""
        roles = self.roles
        found = [i for i, m in enumerate(messages) if m.role in roles and m.supervised]
        if self.train_on == "last":
            answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
            return [i for i in found if i == answers[-1]]
        return found


def is_train_on(value: str) -> bool:
    """Whether a value says which messages are in the loss."""
    return value in ("all", "last") or set(value.split(",")) <= set(get_args(Role))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(
            f"no such rule of {name}",
            expected=", ".join(choices),
            found=str(value),
            fix="Choose one of these.",
        )


DEFAULT = TrainRules()
"""Every answer is trained; nothing is dropped, split or folded."""


def folded(conversation: Conversation) -> Conversation:
    """The conversation with its first message, of the system, before the words of the second.

    A conversation that does not begin with system and user is given back as it is.
    """
    messages = conversation.messages
    if [message.role for message in messages[:2]] != ["system", "user"]:
        return conversation
    system, user = messages[:2]
    parts = user.parts
    if parts or system.parts:
        parts = (*_parts(system), *_parts(user))
    merged = msgspec.structs.replace(user, text=f"{system.text}\n\n{user.text}", parts=parts)
    n_prompt = max(conversation.n_prompt - 1, 0)
    return msgspec.structs.replace(
        conversation, messages=(merged, *messages[2:]), n_prompt=n_prompt
    )


def _parts(message: Message) -> tuple[Part, ...]:
    if message.role != "system":
        return message.parts or (Part(message.text),)
    return (*(message.parts or (Part(message.text),)), Part("\n\n"))
