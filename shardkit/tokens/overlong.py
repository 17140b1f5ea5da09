"""What becomes of rows that are longer than max_length, before `build` cuts them?

They keep their head (`cut`, done by `build`), are rejected (`drop`), or become several rows, a
picture always whole (`split`, only of documents of plain text: an answer without its question
teaches something else).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Reason, Reject
from shardkit.ragged import offsets
from shardkit.tokens.assemble import Runs

_Stretch = tuple[int, int, int]
"""(run, first token in it, tokens)."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows of runs, and which rows they were before."""

    runs: Runs
    parent: NDArray[np.int64]
    """(n,) the row that each row is, or is a piece of."""
    piece: NDArray[np.int64]
    """(n,) which piece of its parent, from 0."""
    is_piece: NDArray[np.bool_]
    """(n,) whether its parent became several rows."""
    first_image: NDArray[np.int64]
    """(n,) images of its parent in the pieces before it."""

    @classmethod
    def whole(cls, runs: Runs) -> Cut:
        """Every row as it is."""
        n = len(runs.rows) - 1
        zeros = np.zeros(n, np.int64)
        return cls(runs, np.arange(n), zeros, np.zeros(n, np.bool_), zeros)


def places_of(runs: Runs, image_tokens: int) -> NDArray[np.int64]:
    """(n,) places that each row takes in the model."""
    places = np.where(runs.is_image, image_tokens * runs.length, runs.length)
    return np.diff(offsets(places)[runs.rows])


def too_long(
    runs: Runs, rows: Sequence[int], max_length: int, image_tokens: int
) -> dict[int, Reject]:
    """The rejects of `drop`, by row."""
    places = places_of(runs, image_tokens)
    return {row: Reject(Reason.TOO_LONG, longer_than(int(places[row]), max_length)) for row in rows}


def longer_than(n_tokens: int, max_length: int) -> str:
    """What to say of a row that `drop` rejects."""
    return f"{n_tokens} tokens, max length {max_length}"


def unsplittable(
    runs: Runs, rows: Sequence[int], max_length: int, image_tokens: int
) -> dict[int, Reject]:
    """Rejects of rows to split in which one picture alone is longer than max_length."""
    found = {}
    for row in rows:
        part = slice(runs.rows[row], runs.rows[row + 1])
        sizes = runs.length[part][runs.is_image[part]] * image_tokens
        if sizes.max(initial=0) > max_length:
            detail = f"a picture of {sizes.max()} tokens, max length {max_length}"
            found[row] = Reject(Reason.IMAGE_TOO_LONG, detail)
    return found


def split_rows(runs: Runs, rows: Sequence[int], max_length: int, image_tokens: int) -> Cut:
    """Some rows as pieces of at most max_length, each as long as it can be.

    A piece also ends before a picture that does not fit any more. The last one has two tokens at
    least where the one before can give one up: the first token of a sample is never predicted.

    Rows of pieces [0, 1] and [0] with [2, 1] and [1] images: before them are [0, 2, 3] images in
    all, the heads have [0, 3] of these, so first_image is [0, 2, 0].
    """
    chosen = set(rows)
    stretches: list[_Stretch] = []
    counts: list[int] = []
    parent: list[int] = []
    piece: list[int] = []
    for row in range(len(runs.rows) - 1):
        first, last = int(runs.rows[row]), int(runs.rows[row + 1])
        whole = [(run, 0, int(runs.length[run])) for run in range(first, last)]
        pieces = [whole]
        if row in chosen:
            pieces = list(_pieces(runs, whole, max_length, image_tokens))
        for number, one in enumerate(pieces):
            stretches += one
            counts.append(len(one))
            parent.append(row)
            piece.append(number)
    table = np.array(stretches, np.int64).reshape(-1, 3)
    run, start, length = table.T
    cut = replace(
        runs,
        source=runs.source[run] + start,
        length=length,
        supervised=runs.supervised[run],
        is_image=runs.is_image[run],
        rows=offsets(counts),
    )
    parents, numbers = np.array(parent, np.int64), np.array(piece, np.int64)
    n_images = np.diff(offsets(cut.is_image.astype(np.int64) * (length > 0))[cut.rows])
    before = offsets(n_images)[:-1]
    heads = np.flatnonzero(numbers == 0)
    first_image = before - before[heads][np.cumsum(numbers == 0) - 1]
    is_piece = np.bincount(parents, minlength=1)[parents] > 1
    return Cut(cut, parents, numbers, is_piece, first_image)


def _pieces(
    runs: Runs, whole: Sequence[_Stretch], max_length: int, image_tokens: int
) -> Iterator[list[_Stretch]]:
    done: list[list[_Stretch]] = [[]]
    room = max_length
    for run, _, length in whole:
        if runs.is_image[run]:
            size = length * image_tokens
            if size > room:
                done.append([])
                room = max_length
            done[-1].append((run, 0, length))
            room -= size
            continue
        start = 0
        while start < length:
            if not room:
                done.append([])
                room = max_length
            n = min(room, length - start)
            done[-1].append((run, start, n))
            start += n
            room -= n
    return iter(_evened(runs, done))


def _evened(runs: Runs, pieces: list[list[_Stretch]]) -> list[list[_Stretch]]:
    """The pieces; one token of the last but one goes to a last one that has only one."""
    if len(pieces) < 2 or len(pieces[-1]) != 1 or len(pieces[-2]) == 0:
        return pieces
    run, start, length = pieces[-2][-1]
    is_lone = pieces[-1][0][2] == 1 and not runs.is_image[pieces[-1][0][0]]
    if is_lone and length > 1 and not runs.is_image[run]:
        pieces[-2][-1] = (run, start, length - 1)
        pieces[-1].insert(0, (run, start + length - 1, 1))
    return pieces


def without(runs: Runs, rows: Mapping[int, object]) -> Runs:
    """The runs with nothing in the loss of these rows, so that `build` drops them."""
    if not rows:
        return runs
    supervised = runs.supervised.copy()
    for row in rows:
        supervised[runs.rows[row] : runs.rows[row + 1]] = False
    return replace(runs, supervised=supervised)
