"""How does a conversation become pieces under a named template?

The rules are XTuner's: user words gather until an answer, the last system prompt before it wins,
each answer makes a turn; leading answers are skipped, trailing questions dropped. Every piece is
encoded on its own: BOS, question with the template around it, answer with its suffix, EOS,
separator (docs/xtuner.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shardkit.conversation import (
    IMAGE_MARK,
    Conversation,
    Exchange,
    ImageRef,
    Message,
    Reason,
    Reject,
)
from shardkit.tokens.pieces import BOS, EOS, N_CONSTANTS, SEP, Pieces, Rows, mismatch, shielded
from shardkit.tokens.templates import Template

_MASKED = 0
_SUPERVISED = 1


class NamedPieces:
    """Adds conversations to `Pieces` under one named template."""

    def __init__(
        self,
        template: Template,
        *,
        has_bos: bool,
        has_eos: bool,
        shield: Callable[[str], str] | None = None,
    ) -> None:
        self._name = template.name
        self._instruction = template.instruction_parts
        self._system = template.system_parts if template.system is not None else None
        self.is_simple = [name for _, name in self._instruction] in (["input"], ["input", None])
        """Whether a question is all that the template asks for."""
        self._head = self._instruction[0][0] if self.is_simple else None
        self._tail = self._instruction[-1][0] if len(self._instruction) == 2 else ""
        self._suffix = template.suffix
        self._shield = shield
        ends_in_eos = has_eos and not template.suffix_as_eos
        self._has_bos = has_bos
        self._has_bos_again = has_bos and ends_in_eos
        self._after = ([EOS] if ends_in_eos else []) + ([SEP] if template.sep else [])
        self._after_loss = [_SUPERVISED if piece == EOS else _MASKED for piece in self._after]
        self._after_masked = [_MASKED] * len(self._after)
        self._first = [BOS] if has_bos else []
        self._plain_loss = [*[_MASKED] * (len(self._first) + 1), _SUPERVISED, *self._after_loss]

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the conversation's pieces, or give the reason why it has none."""
        messages = conversation.messages
        n_leading = 0
        while n_leading < len(messages) and messages[n_leading].role == "assistant":
            n_leading += 1
        if n_leading:
            messages = messages[n_leading:]
        split = _where_to_split(messages, conversation.images) if conversation.images else _NOWHERE
        if isinstance(split, Reject):
            return split
        shield = self._shield
        system = question = ""
        n_turns = 0
        for message in messages:
            role = message.role
            text = message.text
            if shield is not None:
                is_split = split == _EVERYWHERE or (split == _QUESTIONS and role != "assistant")
                text = shielded(text, shield, keeps_marks=is_split)
            if role == "user":
                question += text
            elif role == "assistant":
                n_turns += 1
                reject = self._open_turn(pieces, system, question, n_turns, split)
                if reject is not None:
                    return reject
                reject = self._close_turn(pieces, message, text, split)
                if reject is not None:
                    return reject
                system = question = ""
            elif role == "system":
                system = text
            else:
                detail = f"the named template {self._name} has no place for the role {role!r}"
                return Reject(Reason.UNKNOWN_ROLE, detail)
        if not n_turns:
            return Reject(Reason.NO_ANSWER)
        if n_leading or question or system or conversation.tools:
            _note(pieces, n_leading, bool(question or system), bool(conversation.tools))
        return None

    def add_exchanges(self, exchanges: Sequence[Exchange], pieces: Pieces) -> None:
        """Add rows of one question and one answer: what `add` would, many at once.

        Only for a simple template, and without a shield.
        """
        head, tail, suffix = self._head, self._tail, self._suffix
        n_rows, n_before = len(exchanges), len(self._first)
        order = np.tile([*self._first, 0, 0, *self._after], (n_rows, 1))
        numbers = np.arange(2 * n_rows).reshape(n_rows, 2) + len(pieces.texts) + N_CONSTANTS
        order[:, n_before : n_before + 2] = numbers
        pieces.texts += [
            text
            for one in exchanges
            for text in (f"{head}{one.question}{tail}", f"{one.answer}{suffix}")
        ]
        pieces.add_block(Rows.alike(order, self._plain_loss))

    def _open_turn(
        self, pieces: Pieces, system: str, question: str, round_: int, split: int
    ) -> Reject | None:
        """BOS where it is due, and the question."""
        if self._head is not None:
            text = self._head + question + self._tail
        else:
            values = {"input": question, "round": str(round_)}
            text = _filled(self._instruction, values)
        if system:
            if self._system is None:
                detail = f"the named template {self._name} has no place for a system prompt"
                return Reject(Reason.TEMPLATE_FAILED, detail)
            text = _filled(self._system, {"system": system}) + text
        if self._has_bos if round_ == 1 else self._has_bos_again:
            pieces.order.append(BOS)
            pieces.supervised.append(_MASKED)
        if split == _NOWHERE:
            pieces.order.append(N_CONSTANTS + len(pieces.texts))
            pieces.supervised.append(_MASKED)
            pieces.texts.append(text)
        else:
            pieces.add_text(text, supervised=_MASKED, has_images=True)
        return None

    def _close_turn(self, pieces: Pieces, message: Message, text: str, split: int) -> Reject | None:
        """The answer, and what follows it."""
        if message.tool_calls:
            detail = f"the named template {self._name} cannot print tool calls"
            return Reject(Reason.TEMPLATE_FAILED, detail)
        in_loss = message.supervised
        pieces.add_text(
            text + self._suffix,
            supervised=_SUPERVISED if in_loss else _MASKED,
            has_images=split == _EVERYWHERE,
        )
        pieces.order += self._after
        pieces.supervised += self._after_loss if in_loss else self._after_masked
        return None


_NOWHERE, _QUESTIONS, _EVERYWHERE = 0, 1, 2


def _where_to_split(messages: Sequence[Message], images: Sequence[ImageRef]) -> int | Reject:
    """Are the row's images those of the questions, or of answers too?

    An answer that says `<image>` in words is text as long as the questions' marks are all images.
    """
    asked = sum(m.text.count(IMAGE_MARK) for m in messages if m.role != "assistant")
    if asked == len(images):
        return _QUESTIONS
    marked = sum(m.text.count(IMAGE_MARK) for m in messages)
    return _EVERYWHERE if marked == len(images) else mismatch(marked, len(images))


def _filled(parts: list[tuple[str, str | None]], values: dict[str, str]) -> str:
    return "".join(text + (values[name] if name else "") for text, name in parts)


def _note(pieces: Pieces, n_leading: int, has_trailing: bool, has_tools: bool) -> None:
    pieces.notes.leading_assistant += n_leading
    pieces.notes.trailing_user += has_trailing
    pieces.notes.tools_ignored += has_tools
