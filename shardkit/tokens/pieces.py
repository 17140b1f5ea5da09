"""What is there to encode in a batch of conversations, in which order?

A row is a list of pieces: constants (BOS, EOS, separator, image placeholder, end of a document),
texts to encode, and rows that are ids already. Python lists here, filled once a turn; arrays from
`assemble.py` on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import IMAGE_MARK, Reason, Reject
from shardkit.tokens.answers import Span

BOS: Final = 0
EOS: Final = 1
SEP: Final = 2
IMAGE: Final = 3
END: Final = 4
N_CONSTANTS: Final = 5


@dataclass(slots=True)
class Notes:
    """What encoding left out of rows that it kept, or put right in them: counts."""

    leading_assistant: int = 0
    """Assistant messages before the first question, skipped as XTuner does."""
    trailing_user: int = 0
    """Conversations whose last words had no answer; those words are dropped."""
    system_replaced: int = 0
    """System messages that a later one replaced before any answer, as XTuner does."""
    users_joined: int = 0
    """User messages that were joined to the one before, without a space, as XTuner does."""
    empty_questions: int = 0
    """Answers that followed another one: XTuner puts an empty question between them."""
    images_cut: int = 0
    """Images whose placeholder truncation removed."""
    history_dropped: int = 0
    """Messages without loss of which the template does not print all."""
    history_untrained: int = 0
    """Answers without loss because the template prints them differently later (`last`)."""
    empty_thinks: int = 0
    """Empty think blocks that the template put before an answer, without loss."""
    arguments_parsed: int = 0
    """Arguments of tool calls that were JSON text, and became objects."""
    calls_from_text: int = 0
    """Turns that were a call (`function_call`), and became tool calls."""
    system_folded: int = 0
    """System messages that went before the first question."""
    documents_split: int = 0
    """Documents longer than max_length that became several samples (`overlong`)."""
    documents_without_eos: int = 0
    """Documents that end without the EOS token, since nobody asked for it (`append_eos`)."""
    rows_without_append_eos: int = 0
    """Rows that are no documents, whose ends `append_eos` leaves as they are."""

    def add(self, other: Notes) -> None:
        """Add all counts of other notes to these."""
        self.count({field.name: getattr(other, field.name) for field in fields(other)})

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to the counts of these names."""
        for name, n in counts.items():
            setattr(self, name, getattr(self, name) + n)


@dataclass(frozen=True, slots=True)
class Rows:
    """The pieces of n rows as arrays, each of the meaning of the list of that name in `Pieces`."""

    order: NDArray[np.int64]
    supervised: NDArray[np.bool_]
    ends: NDArray[np.int64]

    @classmethod
    def alike(cls, order: NDArray[np.int64], supervised: list[int]) -> Rows:
        """n rows of k pieces each, from their order (n, k) and k flags that all rows have."""
        n, k = order.shape
        flags = np.tile(np.array(supervised, np.bool_), n)
        return cls(order.ravel(), flags, np.arange(k, n * k + 1, k))


class PictureText(Protocol):
    """What stands for a picture of one size."""

    @property
    def text(self) -> str:
        """The text, with every run of image tokens as one token."""

    @property
    def runs(self) -> tuple[int, ...]:
        """How many image tokens each run is."""

    @property
    def grid(self) -> tuple[int, ...]:
        """How the picture is cut up."""


@dataclass(frozen=True, slots=True)
class Inserted:
    """The pictures of one text."""

    pictures: tuple[PictureText, ...]
    spans: tuple[Span, ...]
    """The characters of each picture, wrappers included."""


@dataclass(slots=True)
class Pieces:
    """The pieces of a batch of rows: lists, filled row by row, and whole blocks of rows."""

    texts: list[str] = field(default_factory=list)
    spans: dict[int, tuple[Span, ...]] = field(default_factory=dict)
    """Supervised characters, by the index of the text; a text without an entry is one run."""
    token_rows: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = field(default_factory=list)
    """(ids, labels) of rows that came as ids."""
    order: list[int] = field(default_factory=list)
    """Per piece: a constant, N_CONSTANTS + a text's index, or -1 - a token row's index."""
    supervised: list[int] = field(default_factory=list)
    """Per piece: 1 in the loss."""
    ends: list[int] = field(default_factory=list)
    """Per row: where its pieces end in `order`."""
    blocks: list[Rows] = field(default_factory=list)
    """Rows before those in `order`, `supervised` and `ends`."""
    cuts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Where the segments of an already packed row begin and end, by the number of the row."""
    inserted: dict[int, Inserted] = field(default_factory=dict)
    """The pictures that a processor's texts stand for, by the index of the text they are in."""
    sizes: Sequence[tuple[int, int]] = ()
    """(width, height) of the pictures of the conversation that is added now."""
    notes: Notes = field(default_factory=Notes)

    def add_text(self, text: str, *, supervised: int, has_images: bool) -> None:
        """A text, cut at its image marks when the row has images."""
        if not has_images or IMAGE_MARK not in text:
            self.order.append(N_CONSTANTS + len(self.texts))
            self.supervised.append(supervised)
            self.texts.append(text)
            return
        for k, part in enumerate(text.split(IMAGE_MARK)):
            if k:
                self.order.append(IMAGE)
                self.supervised.append(0)
            self.order.append(N_CONSTANTS + len(self.texts))
            self.supervised.append(supervised)
            self.texts.append(part)

    def add_masked(self, text: str, spans: Sequence[Span], cuts: Sequence[Span] = ()) -> None:
        """A text with `spans` in the loss, and an image in the place of each of `cuts`."""
        start = 0
        for k, (begin, end) in enumerate([*cuts, (len(text), len(text))]):
            if k:
                self.add_constant(IMAGE)
            self.spans[len(self.texts)] = _clipped(spans, start, begin)
            self.add_constant(N_CONSTANTS + len(self.texts), supervised=1)
            self.texts.append(text[start:begin])
            start = end

    def add_constant(self, constant: int, *, supervised: int = 0) -> None:
        """Add a piece by its number in `order`: a constant, or N_CONSTANTS + a text's index."""
        self.order.append(constant)
        self.supervised.append(supervised)

    @property
    def n_rows(self) -> int:
        """Rows that are whole."""
        return sum(len(block.ends) for block in self.blocks) + len(self.ends)

    def add_block(self, block: Rows) -> None:
        """Add many rows at once; their texts were added to `texts`."""
        self._end_block()
        self.blocks.append(block)

    def rows(self) -> Rows:
        """All rows as arrays."""
        self._end_block()
        if len(self.blocks) == 1:
            return self.blocks[0]
        blocks = self.blocks or [Rows.alike(np.zeros((0, 1), np.int64), [0])]
        starts = np.cumsum([0, *(len(block.order) for block in blocks)]).tolist()
        return Rows(
            np.concatenate([block.order for block in blocks]),
            np.concatenate([block.supervised for block in blocks]),
            np.concatenate([b.ends + start for b, start in zip(blocks, starts, strict=False)]),
        )

    def _end_block(self) -> None:
        if self.ends:
            order, ends = np.array(self.order, np.int64), np.array(self.ends, np.int64)
            self.blocks.append(Rows(order, np.array(self.supervised, np.bool_), ends))
            self.order, self.supervised, self.ends = [], [], []

    def rewind(self, n_texts: int) -> None:
        """Forget what was added since the last end of a row, when there were `n_texts` texts.

        (Token rows are added by adders that can no longer reject.)
        """
        n_pieces = self.ends[-1] if self.ends else 0
        for text in range(n_texts, len(self.texts)):
            self.spans.pop(text, None)
        del self.texts[n_texts:], self.order[n_pieces:], self.supervised[n_pieces:]


def _clipped(spans: Sequence[Span], start: int, end: int) -> tuple[Span, ...]:
    """The spans inside start:end, counted from `start`."""
    cut = ((max(a, start) - start, min(b, end) - start) for a, b in spans)
    return tuple((a, b) for a, b in cut if a < b)


def image_marks(text: str, mark: str = IMAGE_MARK) -> list[Span]:
    """Where a mark stands in a text."""
    return [match.span() for match in re.finditer(re.escape(mark), text)]


def mismatch(n_marks: int, n_images: int, mark: str = IMAGE_MARK) -> Reject:
    """The reject for a row whose marks are not its images."""
    detail = f"{n_marks} {mark} in the text, {n_images} images"
    return Reject(Reason.PLACEHOLDER_MISMATCH, detail)


def shielded(text: str, shield: Callable[[str], str], *, keeps_marks: bool) -> str:
    """The text without look-alikes of special tokens; image marks stay where they are images."""
    if not keeps_marks:
        return shield(text)
    return IMAGE_MARK.join(map(shield, text.split(IMAGE_MARK)))
