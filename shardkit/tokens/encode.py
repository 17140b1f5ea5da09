"""How do conversations become ids and labels?

Pieces of every row of a batch are collected, all texts are encoded in one call, and NumPy puts
ids, labels and truncation together (`assemble.py`). A row that cannot be used is a `Reject`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.errors import TemplateError, UsageError
from shardkit.format.recipe import SFT, Task
from shardkit.format.samples import IMAGE_PLACEHOLDER, SEGMENT_DTYPE, Samples
from shardkit.tokens import preference
from shardkit.tokens.assemble import (
    Built,
    Runs,
    build,
    image_places,
    runs_of,
    why_without_loss,
)
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.engines import CheckedEngine, Difference, Flat
from shardkit.tokens.masks import SpanMasker
from shardkit.tokens.overlong import Cut, places_of, split_rows, too_long, unsplittable, without
from shardkit.tokens.pictures import (
    Ends,
    Expanded,
    PicturePieces,
    Pictures,
    Placed,
    Size,
    expand,
)
from shardkit.tokens.pieces import N_CONSTANTS, Notes, Pieces
from shardkit.tokens.render import (
    ChatPieces,
    NamedPieces,
    TextPieces,
    TokenPieces,
    hidden,
)
from shardkit.tokens.rules import DEFAULT, TrainRules
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
    """Positions in the input, ascending, one per sample (those of a row's pieces are equal)."""
    rejects: list[tuple[int, Reject]]
    """(position in the input, reason), ascending."""
    n_images: NDArray[np.int64]
    """Per sample: how many of the conversation's images (the first ones) have a placeholder."""
    notes: Notes
    """What was left out of rows that were kept, or put right in them."""
    piece: NDArray[np.uint32]
    """Per sample: which piece of its row it is, where rows become several samples; else 0."""
    first_image: NDArray[np.int64]
    """Per sample: images of its conversation in the pieces before it."""
    pictures: tuple[tuple[Placed, ...], ...] = ()
    """Per sample: its pictures, where a processor's texts stand for them."""


class _Row(NamedTuple):
    """One row, or one piece of it."""

    position: int
    piece: int = 0
    is_piece: bool = False

    def rejected(self, reject: Reject) -> tuple[int, Reject]:
        """The position and the reject, which names the piece."""
        return self.position, replace(reject, piece=self.piece) if self.is_piece else reject


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
        """`pictures`: the processor whose texts stand for pictures; None: one placeholder each."""
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
        self._masker = SpanMasker(tokenizer, self._shield)
        self._add_exchanges: Callable[[Sequence[Exchange], Pieces], None] | None = None
        self._adders_by_kind = self._adders()
        self._splits = rules.history == "split" and isinstance(template, ChatTemplate)
        self._constants = self._constant_ids()

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
        rows: list[_Row] = []
        for first, last in _stretches(conversations):
            if self._add_exchanges is not None and isinstance(conversations[first], Exchange):
                self._add_exchanges(conversations[first:last], pieces)  # type: ignore[arg-type]
                rows += [_Row(position) for position in range(first, last)]
                continue
            for position in range(first, last):
                split = self._split(conversations[position])
                for piece, one in enumerate(split):
                    n_texts = len(pieces.texts)
                    pieces.sizes = _first_sizes(sizes.get(position, ()), one)
                    reject = self._add(one, pieces)
                    if reject is None:
                        rows.append(_Row(position, piece, len(split) > 1))
                        pieces.ends.append(len(pieces.order))
                    else:
                        rejects.append(_Row(position, piece, len(split) > 1).rejected(reject))
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
        return self._finish(pieces, flat, rows, rejects, documents)

    def _documents(
        self, conversations: Sequence[Conversation | Exchange], rows: Sequence[_Row]
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

    def _finish(
        self,
        pieces: Pieces,
        flat: Flat,
        rows: list[_Row],
        rejects: list[tuple[int, Reject]],
        documents: set[int],
    ) -> Encoded:
        mask = self._masker.mask(pieces.texts, pieces.spans, flat)
        expanded = self._expanded(pieces, flat, mask)
        runs = runs_of(
            pieces,
            expanded.flat,
            expanded.mask,
            self._constants,
            self.image_placeholder,
            expanded.blocks if self._pictures is not None else None,
        )
        fates = dict.fromkeys(_rows_with(pieces, expanded.stray), _STRAY)
        fates = self._pictures_too_long(runs) | fates
        cut = self._overlong(runs, documents, fates)
        if len(cut.parent) > len(rows):
            pieces.notes.documents_split = int(np.count_nonzero(cut.is_piece & (cut.piece == 0)))
            rows = [_row_of(rows, cut, i) for i in range(len(cut.parent))]
            fates = {i: fates[row] for i, row in enumerate(cut.parent.tolist()) if row in fates}
        runs = without(cut.runs, fates)
        built = build(runs, max_length=self.max_length, image_tokens=self.image_tokens)
        lost = np.setdiff1d(np.arange(len(rows)), built.kept, assume_unique=True)
        for row in lost.tolist():
            reason = fates.get(row)
            if reason is None:
                why = why_without_loss(runs, row, self.max_length, self.image_tokens)
                reason = Reject(Reason.NO_SUPERVISED_TOKENS, why)
            rejects.append(rows[row].rejected(reason))
        rejects.sort(key=lambda item: (item[0], item[1].piece or 0))
        samples = built.samples
        if pieces.cuts:
            borders = {i: pieces.cuts.get(row, ()) for i, row in enumerate(cut.parent.tolist())}
            segments = _segments(borders, built, self.image_placeholder)
            samples = replace(samples, segments=segments)
        pieces.notes.images_cut = int(built.n_images_cut.sum())
        kept = [rows[row] for row in built.kept.tolist()]
        return Encoded(
            samples,
            np.array([row.position for row in kept], np.int64),
            rejects,
            built.n_images,
            pieces.notes,
            np.array([row.piece for row in kept], np.uint32),
            cut.first_image[built.kept],
            _placed(pieces, cut, built) if pieces.inserted else (),
        )

    def _overlong(self, runs: Runs, documents: set[int], fates: dict[int, Reject]) -> Cut:
        """The rows after the rule for those that are too long; rejects of it go to `fates`."""
        how, limit = self.rules.overlong, self.max_length
        if how == "cut" or limit is None:
            return Cut.whole(runs)
        longer = np.flatnonzero(places_of(runs, self.image_tokens) > limit).tolist()
        longer = [row for row in longer if row not in fates]
        chosen = [row for row in longer if row in documents]
        others = [row for row in longer if row not in documents]
        fates |= too_long(runs, others, limit, self.image_tokens)
        fates |= unsplittable(runs, chosen, limit, self.image_tokens)
        chosen = [row for row in chosen if row not in fates]
        return split_rows(runs, chosen, limit, self.image_tokens) if chosen else Cut.whole(runs)

    def _expanded(self, pieces: Pieces, flat: Flat, mask: NDArray[np.bool_] | None) -> Expanded:
        """The texts with all image tokens, and those that spell one without a picture."""
        if self._pictures is not None:
            return expand(pieces, flat, mask, self._masker, self._pictures.image_token_id)
        found = np.flatnonzero(flat[0] == self.image_placeholder)
        if self.image_placeholder < 0:
            found = found[:0]
        texts = np.unique(np.searchsorted(flat[1], found, side="right") - 1)
        return Expanded(flat, mask, np.zeros(0, np.int64), texts)

    def _pictures_too_long(self, runs: Runs) -> dict[int, Reject]:
        """Rows whose pictures cannot be kept whole, whatever is cut behind them."""
        if self._pictures is None or self.max_length is None:
            return {}
        found: dict[int, Reject] = {}
        run_rows = np.repeat(np.arange(len(runs.rows) - 1), np.diff(runs.rows))
        for row in np.unique(run_rows[runs.is_image]).tolist():
            places = image_places(runs, row)
            longest = max(length for _, length in places)
            detail = f"a picture of {longest} tokens, max length {self.max_length}"
            if self._pictures.by_document and len(places) > 1:
                longest = places[-1][0] + places[-1][1]
                detail = (
                    f"{len(places)} pictures end after {longest} tokens, max length "
                    f"{self.max_length}; this processor takes them together"
                )
            if longest > self.max_length:
                found[row] = Reject(Reason.IMAGE_TOO_LONG, detail)
        return found

    def _add(self, one: Conversation | Exchange, pieces: Pieces) -> Reject | None:
        conversation = one.conversation if isinstance(one, Exchange) else one
        return self._adders_by_kind[conversation.kind](conversation, pieces)

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

    def _adders(self) -> dict[str, Adder]:
        """What adds a conversation's pieces, by its kind."""
        tokenizer, template = self.tokenizer, self.template
        has_bos, has_eos = bool(tokenizer.bos_ids), bool(tokenizer.eos_ids)
        shield = self._shield.shield if self._shield else None
        chat: Adder
        if self._pictures is not None and self._ends is not None:
            if not isinstance(template, ChatTemplate):
                raise TemplateError(
                    "a processor needs a chat template",
                    where=f"template {template.name!r}",
                    fix="Leave --template out, or give a .jinja file.",
                )
            hide = None if shield is None else partial(hidden, shield=shield)
            has_bos = bool(self._ends.before)
            chat = PicturePieces(template, self._pictures, self._ends, self.rules, hide).add
        elif isinstance(template, ChatTemplate):
            image = None
            if self.image_placeholder >= 0:
                image = tokenizer.backend.id_to_token(self.image_placeholder)
            chat = ChatPieces(template, shield, self.rules, image).add
        else:
            _check_eos(template, tokenizer)
            named = NamedPieces(
                template, has_bos=has_bos, has_eos=has_eos, shield=shield, rules=self.rules
            )
            chat = named.add
            if named.is_simple and shield is None and self.rules.roles == {"assistant"}:
                self._add_exchanges = named.add_exchanges
        text: Adder = TextPieces(
            has_bos=has_bos,
            shield=shield,
            appends_eos=self.rules.append_eos,
            eos=tokenizer.backend.id_to_token(tokenizer.eos_ids[0]) if has_eos else None,
        ).add
        tokens: Adder = TokenPieces(tokenizer.vocab_size, self.image_placeholder).add
        if self._pictures is not None:
            text, tokens = _without_pictures(text), _without_pictures(tokens)
        return {"chat": chat, "text": text, "tokens": tokens}

    def _constant_ids(self) -> list[NDArray[np.int32]]:
        """The ids of BOS, EOS, the separator, the image placeholder and a document's end."""
        sep = self.template.sep if isinstance(self.template, Template) else ""
        sep_ids = self.tokenizer.backend.encode(sep, add_special_tokens=False).ids
        bos, eos = self.tokenizer.bos_ids, self.tokenizer.eos_ids
        if self._ends is not None:
            bos, eos = self._ends.before, self._ends.after
        groups = (bos, eos, sep_ids, [self.image_placeholder], self.tokenizer.eos_ids)
        return [np.array(group, np.int32) for group in groups]


def _without_pictures(add: Adder) -> Adder:
    """The same for rows without pictures; a processor says nothing of the others' tokens."""

    def checked(conversation: Conversation, pieces: Pieces) -> Reject | None:
        if conversation.images:
            detail = "a processor takes pictures of chats alone (--ignore-field image drops them)"
            return Reject(Reason.UNSUPPORTED_FIELD, detail)
        return add(conversation, pieces)

    return checked


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


def _rows_with(pieces: Pieces, texts: NDArray[np.int64]) -> set[int]:
    """The rows that some of these texts are in."""
    if not len(texts):
        return set()
    rows = pieces.rows()
    piece = np.flatnonzero(np.isin(rows.order, texts + N_CONSTANTS))
    return set(np.searchsorted(rows.ends, piece, side="right").tolist())


def _first_sizes(sizes: Sequence[Size], one: Conversation | Exchange) -> Sequence[Size]:
    """Those of the pictures that a piece of a row still has: its first ones."""
    return sizes[: len(one.images)] if isinstance(one, Conversation) else ()


def _is_document(one: Conversation | Exchange) -> bool:
    return isinstance(one, Conversation) and one.kind == "text"


def _row_of(rows: Sequence[_Row], cut: Cut, i: int) -> _Row:
    """Row i after the cut; the pieces of a document are counted."""
    row = rows[cut.parent[i]]
    return _Row(row.position, int(cut.piece[i]), is_piece=True) if cut.is_piece[i] else row


def _placed(pieces: Pieces, cut: Cut, built: Built) -> tuple[tuple[Placed, ...], ...]:
    """Per sample: the pictures that are left of its row's."""
    rows = pieces.rows()
    starts = np.concatenate([[0], rows.ends])
    found: list[tuple[Placed, ...]] = []
    for row, n in zip(built.kept.tolist(), built.n_images.tolist(), strict=True):
        if not n:
            found.append(())
            continue
        parent, first = cut.parent[row], cut.first_image[row]
        order = rows.order[starts[parent] : starts[parent + 1]]
        texts = (order[order >= N_CONSTANTS] - N_CONSTANTS).tolist()
        pictures = [p for t in texts if t in pieces.inserted for p in pieces.inserted[t].pictures]
        places = image_places(cut.runs, row)
        found.append(
            tuple(
                Placed(sum(picture.runs), picture.grid, *place)
                for picture, place in zip(pictures[first : first + n], places, strict=False)
            )
        )
    return tuple(found)


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
    texts = [f"{m.text}{m.name or ''}{m.call_text}" for m in conversation.messages]
    calls = [(m.tool_calls, m.fields) for m in conversation.messages]
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
