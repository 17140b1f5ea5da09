"""How does a conversation become pieces?

Under a named template by XTuner's rules: user words gather until an answer, the last system prompt
before it wins, each answer makes a turn; leading answers are skipped, trailing questions dropped.
Every piece is encoded on its own: BOS, question with the template around it, answer with its
suffix, EOS, separator (docs/xtuner.md). Under a chat template the whole conversation is one text,
cut only at images, and its supervised characters go along (they become tokens in `masks.py`).
Plain text, and ids that are there already, have no turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec.structs
import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import (
    IMAGE_MARK,
    Conversation,
    Exchange,
    ImageRef,
    Message,
    Reason,
    Reject,
)
from shardkit.format.samples import IGNORE_INDEX
from shardkit.tokens.chat_template import ChatTemplate, Span
from shardkit.tokens.pieces import (
    BOS,
    EOS,
    IMAGE,
    N_CONSTANTS,
    SEP,
    Pieces,
    Rows,
    mismatch,
    shielded,
)
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
        lost = self._lost(conversation)
        if lost is not None:
            return Reject(Reason.UNSUPPORTED_FIELD, lost)
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
        if n_leading or question or system:
            _note(pieces, n_leading, bool(question or system))
        return None

    def _lost(self, conversation: Conversation) -> str | None:
        """What this template would lose of a conversation: it prints texts of turns alone."""
        drops = "(--ignore-field {0} drops it)".format
        for i, message in enumerate(conversation.messages):
            key = message.reasoning_key
            if key is not None:
                detail = f"the named template {self._name} prints no reasoning {drops(key)}"
                return f"{key} of message {i}: {detail}"
            if message.has_switched_parts:
                return f"message {i}: a loss that is switched off for a part of an answer"
        if conversation.tools:
            return f"tools: the named template {self._name} prints no tools {drops('tools')}"
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
        if message.tool_calls and not message.call_text:
            detail = f"the named template {self._name} cannot print tool calls"
            return Reject(Reason.TEMPLATE_FAILED, detail)
        text = text or message.call_text
        in_loss = message.supervised
        pieces.add_text(
            text + self._suffix,
            supervised=_SUPERVISED if in_loss else _MASKED,
            has_images=split == _EVERYWHERE,
        )
        pieces.order += self._after
        pieces.supervised += self._after_loss if in_loss else self._after_masked
        return None


class ChatPieces:
    """Adds conversations to `Pieces` under one chat template."""

    def __init__(self, template: ChatTemplate, shield: Callable[[str], str] | None = None) -> None:
        self._template = template
        self._shield = shield

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the conversation's pieces, or give the reason why it has none."""
        for i, message in enumerate(conversation.messages):
            if message.has_switched_parts:
                detail = f"message {i}: a loss that is switched off for a part of an answer"
                return Reject(Reason.UNSUPPORTED_FIELD, detail)
        if self._shield is not None:
            conversation = hidden(conversation, self._shield)
        rendered = self._template.render(conversation)
        if isinstance(rendered, Reject):
            return rendered
        parts = rendered.text.split(IMAGE_MARK) if conversation.images else [rendered.text]
        if len(parts) - 1 != len(conversation.images):
            return mismatch(len(parts) - 1, len(conversation.images))
        start = 0
        for k, part in enumerate(parts):
            if k:
                pieces.add_constant(IMAGE)
                start += len(IMAGE_MARK)
            pieces.spans[len(pieces.texts)] = _clipped(rendered.spans, start, start + len(part))
            pieces.add_constant(N_CONSTANTS + len(pieces.texts), supervised=_SUPERVISED)
            pieces.texts.append(part)
            start += len(part)
        return None


class TextPieces:
    """Pretraining text: BOS, then the text, all of it in the loss, and no EOS (as XTuner does)."""

    def __init__(self, *, has_bos: bool, shield: Callable[[str], str] | None = None) -> None:
        self._has_bos = has_bos
        self._shield = shield

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the text's pieces, or give the reason why it has none."""
        text = "".join(message.text for message in conversation.messages)
        if not text:
            return Reject(Reason.EMPTY_TEXT)
        if self._shield is not None:
            text = shielded(text, self._shield, keeps_marks=bool(conversation.images))
        if self._has_bos:
            pieces.add_constant(BOS)
        pieces.add_text(text, supervised=1, has_images=bool(conversation.images))
        return None


class TokenPieces:
    """Rows of ids and labels, taken as they are once they fit the vocabulary."""

    def __init__(self, vocab_size: int, image_placeholder: int) -> None:
        self._vocab_size = vocab_size
        self._placeholder = image_placeholder

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the row, or give the reason why it cannot be used."""
        try:
            ids = np.array(conversation.ids, np.int32)
            labels = np.array(conversation.labels, np.int32)
        except (OverflowError, ValueError, TypeError) as error:
            return Reject(Reason.BAD_TOKENS, str(error))
        detail = self._problem(ids, labels)
        if detail is None:
            detail = _cuts_problem(conversation.cuts, len(ids))
        if detail is not None:
            return Reject(Reason.BAD_TOKENS, detail)
        n_marks = int(np.count_nonzero(ids == self._placeholder))
        if conversation.images and n_marks != len(conversation.images):
            return mismatch(n_marks, len(conversation.images))
        if conversation.cuts:
            pieces.cuts[pieces.n_rows] = conversation.cuts
        pieces.order.append(-1 - len(pieces.token_rows))
        pieces.supervised.append(1)
        pieces.token_rows.append((ids, labels))
        return None

    def _problem(self, ids: NDArray[np.int32], labels: NDArray[np.int32]) -> str | None:
        if ids.ndim != 1 or len(ids) != len(labels):
            return f"{len(ids)} ids, {len(labels)} labels"
        is_image = ids == self._placeholder
        bad = np.flatnonzero(((ids < 0) | (ids >= self._vocab_size)) & ~is_image)
        if len(bad):
            at = int(bad[0])
            return f"id {ids[at]} at {at} is not in the vocabulary of {self._vocab_size}"
        wrong = np.flatnonzero((labels != ids) & (labels != IGNORE_INDEX))
        if len(wrong):
            at = int(wrong[0])
            return f"label {labels[at]} at {at} is neither the id {ids[at]} nor {IGNORE_INDEX}"
        if np.any(is_image & (labels != IGNORE_INDEX) & (ids < 0)):
            return "an image placeholder has a label"
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


def _note(pieces: Pieces, n_leading: int, has_trailing: bool) -> None:
    pieces.notes.leading_assistant += n_leading
    pieces.notes.trailing_user += has_trailing


def _clipped(spans: tuple[Span, ...], start: int, end: int) -> tuple[Span, ...]:
    """The spans inside start:end, counted from `start`."""
    cut = ((max(a, start) - start, min(b, end) - start) for a, b in spans)
    return tuple((a, b) for a, b in cut if a < b)


def hidden(conversation: Conversation, shield: Callable[[str], str]) -> Conversation:
    """The conversation with the look-alikes of markers hidden in all that the record wrote."""

    def hide(value: object) -> object:
        if isinstance(value, str):
            return shield(value)
        if isinstance(value, dict):
            return {hide(key): hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [hide(item) for item in value]
        return value

    def hide_message(message: Message) -> Message:
        name = None if message.name is None else shield(message.name)
        calls = tuple(hide(call) for call in message.tool_calls)
        text = shielded(message.text, shield, keeps_marks=bool(conversation.images))
        return msgspec.structs.replace(message, text=text, tool_calls=calls, name=name)

    return msgspec.structs.replace(
        conversation,
        messages=tuple(map(hide_message, conversation.messages)),
        tools=tuple(hide(tool) for tool in conversation.tools),
    )


def _cuts_problem(cuts: tuple[int, ...], length: int) -> str | None:
    """Borders of an already packed row: 0, ascending, the length."""
    if not cuts:
        return None
    is_ascending = all(a < b for a, b in pairwise(cuts))
    if not is_ascending or cuts[0] != 0 or cuts[-1] != length:
        return f"the borders of the packed row are not 0, ascending, {length}: {cuts[:8]}"
    return None
