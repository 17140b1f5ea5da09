"""How does a conversation become pieces, kind by kind?

Chats under a named template: `named_pieces.py`; with a processor's pictures: `pictures.py`. Under
a chat template the whole conversation is one text, cut only at images, and its supervised
characters go along (they become tokens in `masks.py`). Plain text, and ids that are there already,
have no turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import msgspec.structs
import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import (
    IMAGE_MARK,
    Conversation,
    Exchange,
    Message,
    Part,
    Reason,
    Reject,
)
from shardkit.errors import TemplateError
from shardkit.format.samples import IGNORE_INDEX
from shardkit.tokens.answers import Span
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.named_pieces import NamedPieces
from shardkit.tokens.pictures import Ends, PicturePieces, Pictures
from shardkit.tokens.pieces import (
    BOS,
    END,
    Pieces,
    image_marks,
    mismatch,
    shielded,
)
from shardkit.tokens.templates import Template
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.train_rules import DEFAULT, TrainRules

Adder = Callable[[Conversation, Pieces], Reject | None]
"""Adds the pieces of one conversation, or says why it has none."""


class Renderer:
    """Adds conversations of every kind to `Pieces`, for one tokenizer and template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template | ChatTemplate,
        *,
        rules: TrainRules,
        image_placeholder: int,
        shield: Callable[[str], str] | None = None,
        pictures: Pictures | None = None,
        ends: Ends | None = None,
    ) -> None:
        """`pictures`, `ends`: of a processor, with what its tokenizer puts around a text."""
        self.add_exchanges: Callable[[Sequence[Exchange], Pieces], None] | None = None
        """Adds many rows of one question and one answer at once, where the template allows."""
        has_bos, has_eos = bool(tokenizer.bos_ids), bool(tokenizer.eos_ids)
        chat: Adder
        if pictures is not None and ends is not None:
            if not isinstance(template, ChatTemplate):
                raise TemplateError(
                    "a processor needs a chat template",
                    where=f"template {template.name!r}",
                    fix="Leave --template out, or give a .jinja file.",
                )
            hide = None if shield is None else partial(hidden, shield=shield)
            has_bos = bool(ends.before)
            chat = PicturePieces(template, pictures, ends, rules, hide).add
        elif isinstance(template, ChatTemplate):
            image = None
            if image_placeholder >= 0:
                image = tokenizer.backend.id_to_token(image_placeholder)
            chat = ChatPieces(template, shield, rules, image).add
        else:
            _check_eos(template, tokenizer)
            named = NamedPieces(
                template, has_bos=has_bos, has_eos=has_eos, shield=shield, rules=rules
            )
            chat = named.add
            if named.is_simple and shield is None and rules.roles == {"assistant"}:
                self.add_exchanges = named.add_exchanges
        text: Adder = TextPieces(
            has_bos=has_bos,
            shield=shield,
            appends_eos=rules.append_eos,
            eos=tokenizer.backend.id_to_token(tokenizer.eos_ids[0]) if has_eos else None,
        ).add
        tokens: Adder = TokenPieces(tokenizer.vocab_size, image_placeholder).add
        if pictures is not None:
            text, tokens = _without_pictures(text), _without_pictures(tokens)
        self._adders = {"chat": chat, "text": text, "tokens": tokens}

    def add(self, one: Conversation | Exchange, pieces: Pieces) -> Reject | None:
        """Add the pieces of a row, or give the reason why it has none."""
        conversation = one.conversation if isinstance(one, Exchange) else one
        return self._adders[conversation.kind](conversation, pieces)


def _without_pictures(add: Adder) -> Adder:
    """The adder for rows without pictures; a processor says nothing of the others' tokens."""

    def checked(conversation: Conversation, pieces: Pieces) -> Reject | None:
        if conversation.images:
            detail = "a processor takes pictures of chats alone (--ignore-field image drops them)"
            return Reject(Reason.UNSUPPORTED_FIELD, detail)
        return add(conversation, pieces)

    return checked


def _check_eos(template: Template, tokenizer: Tokenizer) -> None:
    if not template.suffix_as_eos and not tokenizer.eos_ids:
        raise TemplateError(
            "the template ends answers with the EOS token, and the tokenizer has none",
            where=f"template {template.name!r}, tokenizer {tokenizer.name}",
            fix="Set eos_token in tokenizer_config.json, or use a template with its own end.",
        )


class ChatPieces:
    """Adds conversations to `Pieces` under one chat template."""

    def __init__(
        self,
        template: ChatTemplate,
        shield: Callable[[str], str] | None = None,
        rules: TrainRules = DEFAULT,
        image_token: str | None = None,
    ) -> None:
        self._template = template
        self._shield = shield
        self._rules = rules
        printed = template.form.image_text
        self._cut = next(
            (cut for cut in (image_token, IMAGE_MARK) if cut and printed and cut in printed),
            printed or IMAGE_MARK,
        )
        """What the template prints for an image: the placeholder replaces it, or follows it."""
        self._keeps_cut = printed is not None and self._cut == printed not in (
            image_token,
            IMAGE_MARK,
        )
        """Whether what the template prints for an image stays before the placeholder: where it is a
        marker of the template's own (Gemma's)."""

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the conversation's pieces, or give the reason why it has none."""
        if self._shield is not None:
            conversation = hidden(conversation, self._shield)
        rendered = self._template.render(conversation, self._rules)
        if isinstance(rendered, Reject):
            return rendered
        cuts: list[Span] = []
        if conversation.images:
            cuts = image_marks(rendered.text, self._cut)
            if len(cuts) != len(conversation.images):
                return mismatch(len(cuts), len(conversation.images), self._cut)
            if self._keeps_cut:
                cuts = [(end, end) for _, end in cuts]
        pieces.add_masked(rendered.text, rendered.spans, cuts)
        pieces.notes.count(rendered.notes)
        return None


class TextPieces:
    """Pretraining text: BOS, then the text, all of it in the loss, and EOS where it is asked for.

    (XTuner puts none.) A text that spells the EOS token at its end already gets no second one,
    unless what texts spell stays text (`shield`).
    """

    def __init__(
        self,
        *,
        has_bos: bool,
        shield: Callable[[str], str] | None = None,
        appends_eos: bool = False,
        eos: str | None = None,
    ) -> None:
        self._has_bos = has_bos
        self._shield = shield
        self._appends_eos = appends_eos
        self._eos = eos if shield is None else None

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
        if self._eos is None or not text.endswith(self._eos):
            if self._appends_eos:
                pieces.add_constant(END, supervised=1)
            else:
                pieces.notes.documents_without_eos += 1
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

    def hide_part(part: Part) -> Part:
        text = None if part.text is None else shield(part.text)
        return msgspec.structs.replace(part, text=text)

    def hide_message(message: Message) -> Message:
        fields = hide(message.fields)
        return msgspec.structs.replace(
            message,
            text=shielded(message.text, shield, keeps_marks=bool(conversation.images)),
            tool_calls=tuple(hide(call) for call in message.tool_calls),
            name=None if message.name is None else shield(message.name),
            call_text=shield(message.call_text),
            parts=tuple(map(hide_part, message.parts)),
            fields=fields if isinstance(fields, dict) else {},
        )

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
