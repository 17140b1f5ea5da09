"""What a batch of conversations became: samples, and the reason for each row that has none.

`SampleMaker` makes both of the ids of all pieces: labels (`masks.py`), image tokens
(`pictures.py`), what is too long (`overlong.py`), and the samples themselves (`assemble.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Reason, Reject
from shardkit.format.samples import SEGMENT_DTYPE, Samples
from shardkit.tokens.assemble import Built, Runs, build, image_places, runs_of, why_without_loss
from shardkit.tokens.masks import SpanMasker
from shardkit.tokens.overlong import Cut, places_of, split_rows, too_long, unsplittable, without
from shardkit.tokens.pictures import Expanded, Pictures, Placed, expand
from shardkit.tokens.pieces import N_CONSTANTS, Notes, Pieces
from shardkit.tokens.tokenizer_engines import Flat
from shardkit.tokens.train_rules import Overlong

_STRAY = Reject(
    Reason.PLACEHOLDER_MISMATCH, "the text spells the image token, and there is no image for it"
)


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


class Row(NamedTuple):
    """One row of the input, or one piece of it: its position there, and which piece it is."""

    position: int
    piece: int = 0
    is_piece: bool = False

    def rejected(self, reject: Reject) -> tuple[int, Reject]:
        """The position and the reject, which names the piece."""
        return self.position, replace(reject, piece=self.piece) if self.is_piece else reject


@dataclass(frozen=True, slots=True)
class SampleMaker:
    """Samples from the ids of pieces, for one length and rule of what is too long."""

    masker: SpanMasker
    constants: list[NDArray[np.int32]]
    """The ids of each constant piece, in the order of their numbers in `pieces`: BOS, EOS,
    separator, image placeholder, end of a document."""
    max_length: int | None
    overlong: Overlong
    image_tokens: int
    image_placeholder: int
    pictures: Pictures | None

    def make(
        self,
        pieces: Pieces,
        flat: Flat,
        rows: list[Row],
        rejects: list[tuple[int, Reject]],
        documents: set[int],
    ) -> Encoded:
        """Samples and rejects of the rows whose pieces have these ids.

        `documents`: the rows that may be split where they are too long.
        """
        mask = self.masker.mask(pieces.texts, pieces.spans, flat)
        expanded = self._expanded(pieces, flat, mask)
        runs = runs_of(
            pieces,
            expanded.flat,
            expanded.mask,
            self.constants,
            self.image_placeholder,
            expanded.blocks if self.pictures is not None else None,
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
        how, limit = self.overlong, self.max_length
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
        if self.pictures is not None:
            return expand(pieces, flat, mask, self.masker, self.pictures.image_token_id)
        found = np.flatnonzero(flat[0] == self.image_placeholder)
        if self.image_placeholder < 0:
            found = found[:0]
        texts = np.unique(np.searchsorted(flat[1], found, side="right") - 1)
        return Expanded(flat, mask, np.zeros(0, np.int64), texts)

    def _pictures_too_long(self, runs: Runs) -> dict[int, Reject]:
        """Rows whose pictures cannot be kept whole, whatever is cut behind them."""
        if self.pictures is None or self.max_length is None:
            return {}
        found: dict[int, Reject] = {}
        run_rows = np.repeat(np.arange(len(runs.rows) - 1), np.diff(runs.rows))
        for row in np.unique(run_rows[runs.is_image]).tolist():
            places = image_places(runs, row)
            longest = max(length for _, length in places)
            detail = f"a picture of {longest} tokens, max length {self.max_length}"
            if self.pictures.by_document and len(places) > 1:
                longest = places[-1][0] + places[-1][1]
                detail = (
                    f"{len(places)} pictures end after {longest} tokens, max length "
                    f"{self.max_length}; this processor takes them together"
                )
            if longest > self.max_length:
                found[row] = Reject(Reason.IMAGE_TOO_LONG, detail)
        return found


def _rows_with(pieces: Pieces, texts: NDArray[np.int64]) -> set[int]:
    """The rows that some of these texts are in."""
    if not len(texts):
        return set()
    rows = pieces.rows()
    piece = np.flatnonzero(np.isin(rows.order, texts + N_CONSTANTS))
    return set(np.searchsorted(rows.ends, piece, side="right").tolist())


def _row_of(rows: Sequence[Row], cut: Cut, i: int) -> Row:
    """Row i after the cut; the pieces of a document are counted."""
    row = rows[cut.parent[i]]
    return Row(row.position, int(cut.piece[i]), is_piece=True) if cut.is_piece[i] else row


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
