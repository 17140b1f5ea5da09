"""Turns under a named template, by XTuner's rules.

User words gather until an answer, the last system prompt before it wins, each answer makes a turn;
leading answers are skipped, trailing questions dropped. Every piece is encoded on its own: BOS,
question with the template around it, answer with its suffix, EOS, separator (docs/xtuner.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shardkit.conversation import (
    IMAGE_MARK,
    Conversation,
    Exchange,
    Message,
    Reason,
    Reject,
)
from shardkit.tokens.answers import Span
from shardkit.tokens.messages import marked_roles
from shardkit.tokens.pieces import (
    BOS,
    EOS,
    N_CONSTANTS,
    SEP,
    Pieces,
    Rows,
    image_marks,
    shielded,
)
from shardkit.tokens.templates import Template
from shardkit.tokens.train_rules import DEFAULT, TrainRules, folded

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
        rules: TrainRules = DEFAULT,
    ) -> None:
        self._name = template.name
        self._instruction = template.instruction_parts
        self._system = template.system_parts if template.system is not None else None
        self.is_simple = [name for _, name in self._instruction] in (["input"], ["input", None])
        """Whether a question is all that the template asks for."""
        self._head = self._instruction[0][0]
        self._tail = self._instruction[-1][0] if len(self._instruction) == 2 else ""
        self._suffix = template.suffix
        self._shield = shield
        self._rules = rules
        self._trains_answers = rules.train_on == "all" and not rules.fold_system
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
        if self._trains_answers and _is_plain(conversation):
            return self._add_plain(conversation.messages, pieces)
        lost = self._lost(conversation)
        if lost is not None:
            return Reject(Reason.UNSUPPORTED_FIELD, lost)
        notes = Counter[str]()
        if self._rules.fold_system and self._system is None:
            folded_one = folded(conversation)
            notes["system_folded"] += folded_one is not conversation
            conversation = folded_one
        marks = marked_roles(conversation)
        if isinstance(marks, Reject):
            return marks
        wanted = set(self._rules.wanted(conversation.messages))
        turn = _Turn()
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant" and not turn.number and not turn.was_asked:
                notes["leading_assistant"] += 1
                continue
            has_images = message.role in marks
            words = self._words(message, has_images, i in wanted)
            if isinstance(words, Reject):
                return words
            if message.role != "assistant":
                turn.ask(message.role, words, has_images, notes)
                continue
            notes["empty_questions"] += not turn.was_asked
            reject = self._add_turn(turn, words, has_images, i in wanted, pieces)
            if reject is not None:
                return reject
        if not turn.number:
            return Reject(Reason.NO_ANSWER)
        notes["trailing_user"] += bool(turn.question.text or turn.system.text)
        pieces.notes.count(notes)
        return None

    def _add_plain(self, messages: Sequence[Message], pieces: Pieces) -> Reject | None:
        """What `add` does for messages of text alone, twice as fast: most chats are such."""
        shield = self._shield
        system = question = ""
        number = n_leading = n_replaced = n_joined = n_empty = 0
        was_asked = False
        for message in messages:
            role = message.role
            text = message.text if shield is None else shield(message.text)
            if role == "user":
                n_joined += bool(question)
                question += text
                was_asked = True
            elif role == "system":
                n_replaced += bool(system)
                system = text
                was_asked = True
            elif not was_asked and not number:
                n_leading += 1
            else:
                n_empty += not was_asked
                if self.is_simple and not system:
                    words = f"{self._head}{question}{self._tail}"
                else:
                    asked = self._question(_Turn(number, _Words(question), _Words(system)))
                    if isinstance(asked, Reject):
                        return asked
                    words = asked.text
                if self._has_bos_again if number else self._has_bos:
                    pieces.order.append(BOS)
                    pieces.supervised.append(_MASKED)
                first = N_CONSTANTS + len(pieces.texts)
                pieces.texts += (words, text + self._suffix)
                pieces.order += (first, first + 1, *self._after)
                in_loss = message.supervised
                pieces.supervised += (_MASKED, _SUPERVISED if in_loss else _MASKED)
                pieces.supervised += self._after_loss if in_loss else self._after_masked
                number += 1
                system = question = ""
                was_asked = False
        if not number:
            return Reject(Reason.NO_ANSWER)
        if n_leading or n_replaced or n_joined or n_empty or was_asked:
            notes = pieces.notes
            notes.leading_assistant += n_leading
            notes.system_replaced += n_replaced
            notes.users_joined += n_joined
            notes.empty_questions += n_empty
            notes.trailing_user += bool(question or system)
        return None

    def _lost(self, conversation: Conversation) -> str | None:
        """What this template would lose of a conversation: it prints texts of turns alone."""
        drops = "(--ignore-field {0} drops it)".format
        for i, message in enumerate(conversation.messages):
            key = message.reasoning_key
            if key is not None:
                detail = f"the named template {self._name} prints no reasoning {drops(key)}"
                return f"{key} of message {i}: {detail}"
        if conversation.tools:
            return f"tools: the named template {self._name} prints no tools {drops('tools')}"
        return None

    def _words(self, message: Message, has_images: bool, is_wanted: bool) -> _Words | Reject:
        """What a message says, shielded, and which of its characters are in the loss."""
        if message.role == "tool":
            detail = f"the named template {self._name} has no place for the role 'tool'"
            return Reject(Reason.UNKNOWN_ROLE, detail)
        if message.tool_calls and not message.call_text:
            detail = f"the named template {self._name} cannot print tool calls"
            return Reject(Reason.TEMPLATE_LOST_TEXT, detail)
        if is_wanted and message.has_switched_parts:
            words = _Words()
            for part in message.parts:
                text = IMAGE_MARK if part.text is None else self._shielded(part.text, False)
                words.add(text, is_wanted=part.supervised)
            ends = ((a, a + len(words.text[a:b].rstrip()), b) for a, b in words.spans)
            words.spans = [(a, b if b == len(words.text) else end) for a, end, b in ends]
            return words
        words = _Words()
        words.add(self._shielded(message.call_text or message.text, has_images), is_wanted)
        return words

    def _shielded(self, text: str, has_images: bool) -> str:
        return (
            text if self._shield is None else shielded(text, self._shield, keeps_marks=has_images)
        )

    def add_exchanges(self, exchanges: Sequence[Exchange], pieces: Pieces) -> None:
        """Add rows of one question and one answer: what `add` would, many at once.

        Only for a simple template, where answers alone are trained, and without a shield.

        With BOS 0, EOS 1, and no texts so far, the order of two rows is [0, 5, 6, 1] and
        [0, 7, 8, 1]: texts are numbered behind the five constants.
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

    def _add_turn(
        self, turn: _Turn, answer: _Words, has_images: bool, is_wanted: bool, pieces: Pieces
    ) -> Reject | None:
        """BOS where it is due, the question, the answer, and what follows it."""
        asked = self._question(turn)
        if isinstance(asked, Reject):
            return asked
        if self._has_bos_again if turn.number else self._has_bos:
            pieces.add_constant(BOS)
        _add(pieces, asked, turn.has_images)
        turn.next()
        answer.add(self._suffix, is_wanted)
        _add(pieces, answer, has_images)
        pieces.order += self._after
        pieces.supervised += self._after_loss if is_wanted else self._after_masked
        return None

    def _question(self, turn: _Turn) -> _Words | Reject:
        """A system prompt and a question, with the template around them."""
        words = _Words()
        if turn.system.text:
            if self._system is None:
                detail = f"the named template {self._name} has no place for a system prompt"
                return Reject(Reason.TEMPLATE_FAILED, detail)
            words.fill(self._system, {"system": turn.system})
        number = _Words(str(turn.number + 1))
        words.fill(self._instruction, {"input": turn.question, "round": number})
        return words


def _is_plain(conversation: Conversation) -> bool:
    """Whether its messages are text of the system, users and answers, and nothing else."""
    if conversation.images or conversation.tools:
        return False
    for m in conversation.messages:
        if m.fields or m.parts or m.tool_calls or m.call_text or m.role == "tool":
            return False
    return True


@dataclass(slots=True)
class _Words:
    """A text, and its characters in the loss."""

    text: str = ""
    spans: list[Span] = field(default_factory=list)

    def add(self, text: str, is_wanted: bool) -> None:
        """Add text at the end, in the loss or not."""
        if is_wanted and text:
            self.spans.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def join(self, other: _Words) -> None:
        """Add another's text and spans at the end."""
        start = len(self.text)
        self.spans += [(start + a, start + b) for a, b in other.spans]
        self.text += other.text

    def fill(self, parts: list[tuple[str, str | None]], values: Mapping[str, _Words]) -> None:
        """Add the parts of a template, with values for its fields."""
        for text, name in parts:
            self.text += text
            if name:
                self.join(values[name])


@dataclass(slots=True)
class _Turn:
    """What was said since the last answer."""

    number: int = 0
    """Answers so far."""
    question: _Words = field(default_factory=_Words)
    system: _Words = field(default_factory=_Words)
    was_asked: bool = False
    """Whether a question or system prompt came since the last answer."""
    has_images: bool = False

    def ask(self, role: str, words: _Words, has_images: bool, notes: Counter[str]) -> None:
        """Words of the user gather; of system prompts the last one counts."""
        self.was_asked = True
        self.has_images |= has_images
        if role == "system":
            notes["system_replaced"] += bool(self.system.text)
            self.system = words
        else:
            notes["users_joined"] += bool(self.question.text)
            self.question.join(words)

    def next(self) -> None:
        """Begin the next turn, after an answer."""
        self.number += 1
        self.question, self.system = _Words(), _Words()
        self.was_asked = self.has_images = False


def _add(pieces: Pieces, words: _Words, has_images: bool) -> None:
    """A text as one piece where all of it, or nothing, is in the loss; else with its spans."""
    is_whole = words.spans == [(0, len(words.text))] or _touch(words)
    if not words.spans or is_whole:
        supervised = _SUPERVISED if words.spans else _MASKED
        pieces.add_text(words.text, supervised=supervised, has_images=has_images)
    else:
        cuts = image_marks(words.text) if has_images else []
        pieces.add_masked(words.text, words.spans, cuts)


def _touch(words: _Words) -> bool:
    """Do the spans, one after the other, cover all of the text?"""
    ends = [0, *(end for _, end in words.spans)]
    begins = [*(begin for begin, _ in words.spans), len(words.text)]
    return ends == begins
