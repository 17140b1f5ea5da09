"""How do conversations become ids and labels?

Pieces of every row of a batch are collected, all texts are encoded in one call, and NumPy puts
ids, labels and truncation together (`assemble.py`). A row that cannot be used is a `Reject`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.errors import TemplateError, UsageError
from shardkit.format.samples import IMAGE_PLACEHOLDER, SEGMENT_DTYPE, Samples
from shardkit.tokens.assemble import Built, build, runs_of, why_without_loss
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.engines import CheckedEngine, Difference, Flat
from shardkit.tokens.masks import SpanMasker
from shardkit.tokens.pieces import N_CONSTANTS, Notes, Pieces
from shardkit.tokens.render import ChatPieces, NamedPieces, TextPieces, TokenPieces
from shardkit.tokens.special_text import Shield
from shardkit.tokens.templates import Template
from shardkit.tokens.tokenizer import Tokenizer

Adder = Callable[[Conversation, Pieces], Reject | None]
"""Adds the pieces of one conversation, or says why it has none."""

_SURROGATE = Reject(Reason.BAD_RECORD, "the text holds a lone surrogate (half a character)")
_STRAY = Reject(
    Reason.PLACEHOLDER_MISMATCH, "the text spells the image token, and there is no image for it"
)

SpecialTokensInText = Literal["parse", "literal"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a batch of conversations became."""

    samples: Samples
    """Images are empty; source and record are zeros: the caller knows them."""
    kept: NDArray[np.int64]
    """Positions in the input, ascending, one per sample."""
    rejects: list[tuple[int, Reject]]
    """(position in the input, reason), ascending."""
    n_images: NDArray[np.int64]
    """Per sample: how many of the conversation's images (the first ones) have a placeholder."""
    notes: Notes
    """What was left out of rows that were kept."""


class Encoder:
    """Conversations to samples, for one tokenizer, template and length."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template | ChatTemplate,
        *,
        max_length: int | None,
        special_tokens_in_text: SpecialTokensInText = "parse",
        image_tokens: int = 1,
        image_placeholder: int = IMAGE_PLACEHOLDER,
        engine: str = "auto",
    ) -> None:
        _check_options(max_length, image_tokens, special_tokens_in_text)
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.image_tokens = image_tokens
        self.image_placeholder = image_placeholder
        self._engine = CheckedEngine(tokenizer, engine)
        self._shield = Shield(tokenizer) if special_tokens_in_text == "literal" else None
        self._masker = SpanMasker(tokenizer, self._shield)
        self._add_exchanges: Callable[[Sequence[Exchange], Pieces], None] | None = None
        self._adders_by_kind = self._adders()
        self._constants = self._constant_ids()

    @property
    def engine_name(self) -> str:
        """The engine that encodes now."""
        return self._engine.name

    @property
    def difference(self) -> Difference | None:
        """Why a fast engine was given up; None where it was not."""
        return self._engine.difference

    def encode(self, conversations: Sequence[Conversation | Exchange]) -> Encoded:
        """Samples of the conversations that can be used, and the reasons for the others."""
        pieces = Pieces()
        rejects: list[tuple[int, Reject]] = []
        rows: list[int] = []
        for first, last in _stretches(conversations):
            if self._add_exchanges is not None and isinstance(conversations[first], Exchange):
                self._add_exchanges(conversations[first:last], pieces)  # type: ignore[arg-type]
                rows += range(first, last)
                continue
            for position in range(first, last):
                n_texts = len(pieces.texts)
                reject = self._add(conversations[position], pieces)
                if reject is None:
                    rows.append(position)
                    pieces.ends.append(len(pieces.order))
                else:
                    rejects.append((position, reject))
                    pieces.rewind(n_texts)
        try:
            flat = self._encode_texts(pieces.texts)
        except UnicodeEncodeError:
            bad = {i for i, one in enumerate(conversations) if _has_surrogate(one)}
            if not bad:
                raise
            return self._without(bad, conversations)
        return self._finish(pieces, flat, np.array(rows, np.int64), rejects)

    def _finish(
        self,
        pieces: Pieces,
        flat: Flat,
        rows: NDArray[np.int64],
        rejects: list[tuple[int, Reject]],
    ) -> Encoded:
        mask = self._masker.mask(pieces.texts, pieces.spans, flat)
        runs = runs_of(pieces, flat, mask, self._constants, self.image_placeholder)
        stray = self._stray_rows(pieces, flat)
        for row in stray:
            runs.supervised[runs.rows[row] : runs.rows[row + 1]] = False
        built = build(runs, max_length=self.max_length, image_tokens=self.image_tokens)
        lost = np.setdiff1d(np.arange(len(rows)), built.kept, assume_unique=True)
        for row in lost.tolist():
            why = why_without_loss(runs, row, self.max_length, self.image_tokens)
            reason = _STRAY if row in stray else Reject(Reason.NO_SUPERVISED_TOKENS, why)
            rejects.append((int(rows[row]), reason))
        rejects.sort(key=lambda item: item[0])
        samples = built.samples
        if pieces.cuts:
            samples = replace(
                samples, segments=_segments(pieces.cuts, built, self.image_placeholder)
            )
        pieces.notes.images_cut = int(built.n_images_cut.sum())
        return Encoded(samples, rows[built.kept], rejects, built.n_images, pieces.notes)

    def _add(self, one: Conversation | Exchange, pieces: Pieces) -> Reject | None:
        conversation = one.conversation if isinstance(one, Exchange) else one
        return self._adders_by_kind[conversation.kind](conversation, pieces)

    def _encode_texts(self, texts: list[str]) -> Flat:
        if self._shield is not None:
            return self._shield.encode(texts, self._engine.encode)
        return self._engine.encode(texts)

    def _stray_rows(self, pieces: Pieces, flat: Flat) -> set[int]:
        """Rows whose text became the image token itself, with no image behind it."""
        if self.image_placeholder < 0:
            return set()
        found = np.flatnonzero(flat[0] == self.image_placeholder)
        if not len(found):
            return set()
        text = np.unique(np.searchsorted(flat[1], found, side="right") - 1)
        rows = pieces.rows()
        piece = np.flatnonzero(np.isin(rows.order, text + N_CONSTANTS))
        return set(np.searchsorted(rows.ends, piece, side="right").tolist())

    def _without(self, bad: set[int], conversations: Sequence[Conversation | Exchange]) -> Encoded:
        """Encode again without the rows that hold a lone surrogate; those are rejected."""
        good = [i for i in range(len(conversations)) if i not in bad]
        encoded = self.encode([conversations[i] for i in good])
        rejects = [(good[i], other) for i, other in encoded.rejects]
        rejects += [(i, _SURROGATE) for i in bad]
        return replace(
            encoded,
            kept=np.array(good, np.int64)[encoded.kept],
            rejects=sorted(rejects, key=lambda item: item[0]),
        )

    def _adders(self) -> dict[str, Adder]:
        """What adds a conversation's pieces, by its kind."""
        tokenizer, template = self.tokenizer, self.template
        has_bos, has_eos = bool(tokenizer.bos_ids), bool(tokenizer.eos_ids)
        shield = self._shield.shield if self._shield else None
        chat: Adder
        if isinstance(template, ChatTemplate):
            chat = ChatPieces(template, shield).add
        else:
            _check_eos(template, tokenizer)
            named = NamedPieces(template, has_bos=has_bos, has_eos=has_eos, shield=shield)
            chat = named.add
            if named.is_simple and shield is None:
                self._add_exchanges = named.add_exchanges
        text = TextPieces(has_bos=has_bos, shield=shield).add
        tokens = TokenPieces(tokenizer.vocab_size, self.image_placeholder).add
        return {"chat": chat, "text": text, "tokens": tokens}

    def _constant_ids(self) -> list[NDArray[np.int32]]:
        """The ids of BOS, EOS, the separator and the image placeholder, in this order."""
        sep = self.template.sep if isinstance(self.template, Template) else ""
        sep_ids = self.tokenizer.backend.encode(sep, add_special_tokens=False).ids
        groups = (self.tokenizer.bos_ids, self.tokenizer.eos_ids, sep_ids, [self.image_placeholder])
        return [np.array(group, np.int32) for group in groups]


def _check_options(max_length: int | None, image_tokens: int, special: str) -> None:
    if max_length is not None and max_length < 1:
        raise UsageError(
            "max_length leaves no token",
            expected="1 or more, or None",
            found=str(max_length),
            fix="Give a positive --max-length.",
        )
    if image_tokens < 1:
        raise UsageError(
            "an image is at least one token",
            found=str(image_tokens),
            fix="Give --image-tokens 1 or more.",
        )
    if special not in ("parse", "literal"):
        raise UsageError(
            "unknown rule for special tokens in text",
            expected="parse or literal",
            found=special,
            fix="Choose one of the two.",
        )


def _check_eos(template: Template, tokenizer: Tokenizer) -> None:
    if not template.suffix_as_eos and not tokenizer.eos_ids:
        raise TemplateError(
            "the template ends answers with the EOS token, and the tokenizer has none",
            where=f"template {template.name!r}, tokenizer {tokenizer.name}",
            fix="Set eos_token in tokenizer_config.json, or use a template with its own end.",
        )


def _stretches(conversations: Sequence[Conversation | Exchange]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each stretch of exchanges, and of others, in turn."""
    is_exchange = np.array([kind is Exchange for kind in map(type, conversations)], bool)
    borders = np.flatnonzero(is_exchange[1:] != is_exchange[:-1]) + 1
    return pairwise([0, *borders.tolist(), len(conversations)] if len(conversations) else [])


def _has_surrogate(one: Conversation | Exchange) -> bool:
    conversation = one.conversation if isinstance(one, Exchange) else one
    texts = [f"{message.text}{message.name or ''}" for message in conversation.messages]
    calls = [message.tool_calls for message in conversation.messages]
    try:
        "".join([*texts, json.dumps([calls, conversation.tools], ensure_ascii=False)]).encode()
    except UnicodeEncodeError:
        return True
    return False


def _segments(cuts: dict[int, tuple[int, ...]], built: Built, placeholder: int) -> NDArray[np.void]:
    """Segment rows of the samples: one for a row that was not packed."""
    samples, rows = built.samples, []
    for sample, row in enumerate(built.kept.tolist()):
        length = int(samples.starts[sample + 1] - samples.starts[sample])
        borders = [c for c in cuts.get(row, ()) if 0 < c < length]
        for start, end in pairwise([0, *borders, length]):
            rows.append((sample, start, end - start, 0, 0, start, 0, 0, 0))
    segments = np.array(rows, SEGMENT_DTYPE)
    first = samples.starts[segments["sample"]] + segments["start"]
    places = np.flatnonzero(samples.ids == placeholder)
    ends = first + segments["length"]
    segments["n_images"] = np.searchsorted(places, ends) - np.searchsorted(places, first)
    return segments
