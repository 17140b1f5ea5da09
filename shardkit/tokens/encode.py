"""How do conversations become ids and labels?

Pieces of every row of a batch are collected (`render.py`), all texts are encoded in one call, and
NumPy puts ids, labels and truncation together (`encoded.py`). A row that cannot be used is a
`Reject`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.errors import UsageError
from shardkit.format.recipe import SFT, Task
from shardkit.format.samples import IMAGE_PLACEHOLDER
from shardkit.tokens import preference
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.encoded import Encoded, Row, SampleMaker
from shardkit.tokens.masks import SpanMasker
from shardkit.tokens.pictures import Ends, Pictures, Size
from shardkit.tokens.pieces import Pieces
from shardkit.tokens.render import Renderer
from shardkit.tokens.special_text import Shield
from shardkit.tokens.templates import Template
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.tokenizer_engines import CheckedEngine, Difference, Flat
from shardkit.tokens.train_rules import DEFAULT, TrainRules

_SURROGATE = Reject(Reason.BAD_RECORD, "the text holds a lone surrogate (half a character)")

SpecialTokensInText = Literal["parse", "literal"]


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
        rules: TrainRules = DEFAULT,
        pictures: Pictures | None = None,
        task: Task = SFT,
    ) -> None:
        """`max_length`: the most tokens of a sample, None for no limit.

        `image_tokens`: what a placeholder counts towards it. `pictures`: the processor whose texts
        stand for pictures; None: one placeholder each. `engine`: a name in ENGINES, or `auto`.
        Raises UsageError for an option out of range, TemplateError where tokenizer or processor
        do not go with the template, TokenizerError or MissingPackage for the engine.
        """
        _check_options(max_length, image_tokens, special_tokens_in_text)
        self.tokenizer = tokenizer
        self.template = template
        self._task = task
        rules = rules if task == SFT else replace(rules, train_empty_think=True)
        self.rules = rules
        self.max_length = max_length
        self.image_tokens = image_tokens
        self.image_placeholder = image_placeholder
        self._pictures = pictures
        self._ends = ends_of(tokenizer) if pictures is not None else None
        self._engine = CheckedEngine(tokenizer, engine)
        self._shield = Shield(tokenizer) if special_tokens_in_text == "literal" else None
        self._renderer = Renderer(
            tokenizer,
            template,
            rules=rules,
            image_placeholder=image_placeholder,
            shield=self._shield.shield if self._shield else None,
            pictures=pictures,
            ends=self._ends,
        )
        self._splits = rules.history == "split" and isinstance(template, ChatTemplate)
        self._maker = SampleMaker(
            SpanMasker(tokenizer, self._shield),
            self._constant_ids(),
            max_length,
            rules.overlong,
            image_tokens,
            image_placeholder,
            pictures,
        )

    @property
    def engine_name(self) -> str:
        """The engine that encodes now."""
        return self._engine.name

    @property
    def has_pictures(self) -> bool:
        """Whether a processor says what stands for pictures."""
        return self._pictures is not None

    @property
    def difference(self) -> Difference | None:
        """Why a fast engine was given up; None where it was not."""
        return self._engine.difference

    def encode(
        self,
        conversations: Sequence[Conversation | Exchange],
        sizes: Mapping[int, Sequence[Size]] | None = None,
    ) -> Encoded:
        """Samples of the conversations that can be used, and the reasons for the others.

        `sizes`: by position, (width, height) of a conversation's upright pictures; only where a
        processor says what stands for them.
        """
        sizes = sizes or {}
        if self._task == SFT:
            return self._encode(conversations, sizes)
        halves = preference.apart(conversations, self._task)
        encoded = self._encode(halves, preference.sizes_apart(sizes, self._task))
        return preference.together(encoded, conversations, self._task)

    def _encode(
        self,
        conversations: Sequence[Conversation | Exchange],
        sizes: Mapping[int, Sequence[Size]],
    ) -> Encoded:
        pieces = Pieces()
        rejects: list[tuple[int, Reject]] = []
        rows: list[Row] = []
        add_exchanges = self._renderer.add_exchanges
        for first, last in _stretches(conversations):
            if add_exchanges is not None and isinstance(conversations[first], Exchange):
                add_exchanges(conversations[first:last], pieces)  # type: ignore[arg-type]
                rows += [Row(position) for position in range(first, last)]
                continue
            for position in range(first, last):
                split = self._split(conversations[position])
                for piece, one in enumerate(split):
                    n_texts = len(pieces.texts)
                    pieces.sizes = _first_sizes(sizes.get(position, ()), one)
                    reject = self._renderer.add(one, pieces)
                    if reject is None:
                        rows.append(Row(position, piece, len(split) > 1))
                        pieces.ends.append(len(pieces.order))
                    else:
                        rejects.append(Row(position, piece, len(split) > 1).rejected(reject))
                        pieces.rewind(n_texts)
        try:
            flat = self._encode_texts(pieces.texts)
        except UnicodeEncodeError:
            bad = {i for i, one in enumerate(conversations) if _has_surrogate(one)}
            if not bad:
                raise
            return self._without(bad, conversations, sizes)
        if self.rules.append_eos:
            kinds = (conversations[row.position] for row in rows)
            pieces.notes.rows_without_append_eos = sum(not _is_document(one) for one in kinds)
        documents = self._documents(conversations, rows)
        return self._maker.make(pieces, flat, rows, rejects, documents)

    def _documents(
        self, conversations: Sequence[Conversation | Exchange], rows: Sequence[Row]
    ) -> set[int]:
        """The rows that may be split where they are too long."""
        if self.rules.overlong != "split":
            return set()
        return {i for i, row in enumerate(rows) if _is_document(conversations[row.position])}

    def _split(self, one: Conversation | Exchange) -> Sequence[Conversation | Exchange]:
        """The pieces of a row, of which each becomes a sample; nearly always the row itself."""
        if self._splits and isinstance(one, Conversation) and one.kind == "chat":
            assert isinstance(self.template, ChatTemplate)  # noqa: S101
            return self.template.split(one, self.rules)
        return (one,)

    def _encode_texts(self, texts: list[str]) -> Flat:
        if self._shield is not None:
            return self._shield.encode(texts, self._engine.encode)
        return self._engine.encode(texts)

    def _without(
        self,
        bad: set[int],
        conversations: Sequence[Conversation | Exchange],
        sizes: Mapping[int, Sequence[Size]],
    ) -> Encoded:
        """Encode again without the rows that hold a lone surrogate; those are rejected."""
        good = [i for i in range(len(conversations)) if i not in bad]
        sizes = {k: sizes[i] for k, i in enumerate(good) if i in sizes}
        encoded = self._encode([conversations[i] for i in good], sizes)
        rejects = [(good[i], other) for i, other in encoded.rejects]
        rejects += [(i, _SURROGATE) for i in bad]
        return replace(
            encoded,
            kept=np.array(good, np.int64)[encoded.kept],
            rejects=sorted(rejects, key=lambda item: item[0]),
        )

    def _constant_ids(self) -> list[NDArray[np.int32]]:
        """The ids of BOS, EOS, the separator, the image placeholder and a document's end."""
        sep = self.template.sep if isinstance(self.template, Template) else ""
        sep_ids = self.tokenizer.backend.encode(sep, add_special_tokens=False).ids
        bos, eos = self.tokenizer.bos_ids, self.tokenizer.eos_ids
        if self._ends is not None:
            bos, eos = self._ends.before, self._ends.after
        groups = (bos, eos, sep_ids, [self.image_placeholder], self.tokenizer.eos_ids)
        return [np.array(group, np.int32) for group in groups]


def ends_of(tokenizer: Tokenizer) -> Ends:
    """What `tokenizer(text)` puts around a text."""
    probe = "a"
    bare = tokenizer.backend.encode(probe, add_special_tokens=False).ids
    full = tokenizer.backend.encode(probe, add_special_tokens=True).ids
    n_before = next(
        (i for i in range(len(full)) if full[i : i + len(bare)] == bare), len(full) - len(bare)
    )
    bos = tokenizer.config.special_tokens.get("bos_token")
    after = full[n_before + len(bare) :]
    return Ends(tuple(full[:n_before]), tuple(after), None if bos is None else str(bos))


def _first_sizes(sizes: Sequence[Size], one: Conversation | Exchange) -> Sequence[Size]:
    """Sizes of the pictures that a piece of a row still has: its first ones."""
    return sizes[: len(one.images)] if isinstance(one, Conversation) else ()


def _is_document(one: Conversation | Exchange) -> bool:
    return isinstance(one, Conversation) and one.kind == "text"


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


def _stretches(conversations: Sequence[Conversation | Exchange]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each stretch of exchanges, and of others, in turn."""
    is_exchange = np.array([kind is Exchange for kind in map(type, conversations)], bool)
    borders = np.flatnonzero(is_exchange[1:] != is_exchange[:-1]) + 1
    return pairwise([0, *borders.tolist(), len(conversations)] if len(conversations) else [])


def _has_surrogate(one: Conversation | Exchange) -> bool:
    conversation = one.conversation if isinstance(one, Exchange) else one
    texts = [f"{m.text}{m.name or ''}{m.call_text}" for m in conversation.messages]
    calls = [(m.tool_calls, m.fields) for m in conversation.messages]
    try:
        "".join([*texts, json.dumps([calls, conversation.tools], ensure_ascii=False)]).encode()
    except UnicodeEncodeError:
        return True
    return False
