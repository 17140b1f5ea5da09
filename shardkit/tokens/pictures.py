"""How do pictures stand in the ids, when a processor says which text each of them becomes?

A conversation is one text in which every picture is what the processor writes for its size, but
each run of image tokens is one token. That text is encoded like any other, and the runs are made
as long as they are: the same ids as those of the whole text, without encoding a thousand
`<image>`. The first to the last token of a picture, its separators included, are a block that
nothing cuts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import IMAGE_MARK, Conversation, Reason, Reject
from shardkit.errors import PictureRefused, TokenizerError
from shardkit.ragged import offsets
from shardkit.tokens.answers import Span
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.masks import SpanMasker
from shardkit.tokens.pieces import BOS, EOS, N_CONSTANTS, Inserted, PictureText, Pieces
from shardkit.tokens.tokenizer_engines import Flat
from shardkit.tokens.train_rules import DEFAULT, TrainRules

Size = tuple[int, int]


class Pictures(Protocol):
    """A processor, as far as texts go."""

    @property
    def placeholder(self) -> str:
        """What the chat template prints for a picture."""

    @property
    def image_token_id(self) -> int:
        """The id that is repeated for a picture."""

    @property
    def wrappers(self) -> tuple[str, ...]:
        """What the chat template prints around a picture, and belongs to it."""

    @property
    def around(self) -> tuple[str, ...]:
        """Tokens that chat template or processor put around a picture."""

    @property
    def by_document(self) -> bool:
        """Whether a picture depends on how many its conversation has."""

    def picture(self, size: Size, n_in_document: int) -> PictureText:
        """What stands for a picture of (width, height). Raises PictureRefused."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture in a row."""

    tokens: int
    """Image tokens."""
    grid: tuple[int, ...]
    """How the processor cuts the picture up."""
    first: int
    """The picture's first token in the row, separators included."""
    length: int
    """Tokens of the row that stand for the picture."""
    again: int | None = None
    """The picture's first token where it stands a second time, in a preference row."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first token, tokens) of each time that the picture stands in the row."""
        firsts = (self.first,) if self.again is None else (self.first, self.again)
        return tuple((first, self.length) for first in firsts)


@dataclass(frozen=True, slots=True)
class Ends:
    """The special tokens that a tokenizer puts around a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    bos: str | None
    """The text of the BOS token: what begins with it gets no special tokens around it, as with
    `apply_chat_template`."""


class PicturePieces:
    """Adds conversations to `Pieces` with the texts of their pictures."""

    def __init__(
        self,
        template: ChatTemplate,
        pictures: Pictures,
        ends: Ends,
        rules: TrainRules = DEFAULT,
        hide: Callable[[Conversation], Conversation] | None = None,
    ) -> None:
        self._template = template
        self._pictures = pictures
        self._ends = ends
        self._rules = rules
        self._hide = hide

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the conversation's pieces, or give the reason why it has none.

        `pieces.sizes` are the sizes of its pictures.
        """
        if self._hide is not None:
            conversation = self._hide(conversation)
        elif pieces.sizes and (typed := self._typed_twice(conversation)):
            return Reject(Reason.PLACEHOLDER_MISMATCH, typed)
        rendered = self._template.render(conversation, self._rules)
        if isinstance(rendered, Reject):
            return rendered
        mark, sizes = self._pictures.placeholder, pieces.sizes
        parts = rendered.text.split(mark)
        if len(parts) - 1 != len(sizes):
            detail = f"{len(parts) - 1} {mark} in the rendered text, {len(sizes)} images"
            return Reject(Reason.PLACEHOLDER_MISMATCH, detail)
        try:
            found = [self._pictures.picture(size, len(sizes)) for size in sizes]
        except PictureRefused as err:
            return Reject(Reason.IMAGE_REFUSED, err.message)
        text, spans = parts[0], []
        for part, picture in zip(parts[1:], found, strict=True):
            spans.append(self._wrapped(text, picture.text, part))
            text += picture.text + part
        is_plain = self._ends.bos is not None and text.startswith(self._ends.bos)
        if self._ends.before and not is_plain:
            pieces.add_constant(BOS)
        number = len(pieces.texts)
        if found:
            pieces.inserted[number] = Inserted(tuple(found), tuple(spans))
        pieces.spans[number] = _moved(rendered.spans, parts, mark, found)
        pieces.add_constant(N_CONSTANTS + number, supervised=1)
        pieces.texts.append(text)
        if self._ends.after and not is_plain:
            pieces.add_constant(EOS)
        pieces.notes.count(rendered.notes)
        return None

    def _typed_twice(self, conversation: Conversation) -> str | None:
        """What is wrong with text that has a marker beside a picture which is printed there too."""
        for message in conversation.messages:
            match = self._beside.search(message.text)
            if match:
                return (
                    f"{match.group().replace(IMAGE_MARK, '').strip()} is written beside "
                    f"{IMAGE_MARK}, and the processor puts it there itself: take it out of the text"
                )
        return None

    @cached_property
    def _beside(self) -> re.Pattern[str]:
        """A mark beside a token that template or processor print around a picture."""
        own = "|".join(map(re.escape, self._pictures.around))
        mark = re.escape(IMAGE_MARK)
        return re.compile(rf"(?:{own})\s*{mark}|{mark}\s*(?:{own})" if own else r"(?!)")

    def _wrapped(self, before: str, picture: str, after: str) -> Span:
        """The characters of a picture with those of its wrappers that stand around it."""
        start, end = len(before), len(before) + len(picture)
        for token in self._pictures.wrappers:
            if before.endswith(token):
                start -= len(token)
                break
        for token in self._pictures.wrappers:
            if after.startswith(token):
                return start, end + len(token)
        return start, end


def _moved(
    spans: Sequence[Span], parts: Sequence[str], mark: str, found: Sequence[PictureText]
) -> tuple[Span, ...]:
    """Spans of the rendered text, in the text with pictures.

    Parts "ab" and "c" around a mark of 3 characters, whose picture's text has 5: the mark ends at
    5, so places from 5 on gain 2, and the span 5:6 becomes 7:8.
    """
    ends = np.cumsum([len(part) + len(mark) for part in parts[:-1]], dtype=np.int64)
    gained = offsets([len(picture.text) - len(mark) for picture in found])

    def moved(place: int) -> int:
        return place + int(gained[np.searchsorted(ends, place, side="right")])

    return tuple((moved(a), moved(b)) for a, b in spans)


@dataclass(frozen=True, slots=True)
class Expanded:
    """Encoded texts with all image tokens."""

    flat: Flat
    mask: NDArray[np.bool_] | None
    blocks: NDArray[np.int64]
    """Per token: 0, or 1 + the number of the picture that it stands for (in reading order)."""
    stray: NDArray[np.int64]
    """Texts whose image tokens are not those of their pictures: somebody wrote them."""


def expand(
    pieces: Pieces,
    flat: Flat,
    mask: NDArray[np.bool_] | None,
    masker: SpanMasker,
    image_token_id: int,
) -> Expanded:
    """The texts of `pieces`, encoded as `flat`, with every run of image tokens in its length.

    `mask`: per token whether it is in the loss (None: all are); no token of a picture is.

    Ids [7, I, 8] with one picture of a run of 3: counts [1, 3, 1], ids [7, I, I, I, 8], and a text
    that began at 2 begins at 4.
    """
    ids, starts = flat
    blocks = _blocks(pieces, flat, masker)
    is_image = ids == image_token_id
    wanted = np.zeros(len(pieces.texts), np.int64)
    runs: list[int] = []
    for number, inserted in sorted(pieces.inserted.items()):
        own = [n for picture in inserted.pictures for n in picture.runs]
        wanted[number] = len(own)
        runs += own
    before = np.concatenate([[0], np.cumsum(is_image)])
    found = before[starts[1:]] - before[starts[:-1]]
    stray = np.flatnonzero(found != wanted)
    counts = np.ones(len(ids), np.int64)
    is_good = np.repeat(found == wanted, np.diff(starts))
    is_wanted = np.repeat(found == wanted, wanted)
    counts[is_image & is_good] = np.array(runs, np.int64)[is_wanted]
    ends = np.cumsum(counts)
    blocks = np.repeat(blocks, counts)
    if mask is not None or len(runs):
        mask = np.ones(len(ids), bool) if mask is None else mask
        mask = np.repeat(mask, counts) & (blocks == 0)
    new_starts = np.concatenate([[0], ends])[starts]
    return Expanded((np.repeat(ids, counts), new_starts), mask, blocks, stray)


def _blocks(pieces: Pieces, flat: Flat, masker: SpanMasker) -> NDArray[np.int64]:
    """Which picture each token stands for, before runs are made longer.

    Found twice, for every other picture, so that two of them that touch stay two. Tokens inside
    [F, T, T, F, T]: is_begin [F, T, F, F, T], whose running sums [0, 1, 1, 1, 2] number pictures.
    """
    ids, starts = flat
    blocks = np.zeros(len(ids), np.int64)
    if not pieces.inserted:
        return blocks
    chosen = sorted(pieces.inserted)
    texts = [pieces.texts[number] for number in chosen]
    lengths = np.diff(starts)[chosen]
    token = np.repeat(starts[chosen] - offsets(lengths)[:-1], lengths)
    token += np.arange(len(token))
    own = (ids[token], offsets(lengths))
    firsts = offsets([len(pieces.inserted[number].spans) for number in chosen])
    for parity in (0, 1):
        spans, numbers = {}, list[int]()
        for k, number in enumerate(chosen):
            every = pieces.inserted[number].spans
            spans[k] = every[parity::2]
            numbers += range(int(firsts[k]) + parity, int(firsts[k]) + len(every), 2)
        inside = masker.mask(texts, spans, own)
        if inside is None:
            continue
        is_begin = inside.copy()
        is_begin[1:] &= ~inside[:-1]
        is_begin[own[1][:-1][lengths > 0]] |= inside[own[1][:-1][lengths > 0]]
        if np.count_nonzero(is_begin) != len(numbers):
            raise TokenizerError(
                "the tokens of pictures cannot be told from each other",
                expected=f"{len(numbers)} pictures",
                found=f"{np.count_nonzero(is_begin)} stretches of tokens",
                fix="Report this tokenizer and template; pack one picture a row meanwhile.",
            )
        number_of = np.concatenate([[0], np.array(numbers, np.int64) + 1])[np.cumsum(is_begin)]
        free = token[inside & (blocks[token] == 0)]
        blocks[free] = number_of[inside & (blocks[token] == 0)]
    return blocks
