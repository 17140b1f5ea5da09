"""Two answers to a prompt become one sample of two segments; a labelled answer, a flagged sample.

Each answer is encoded as the conversation that it ends, by all the rules of one. Then everything
from the answer's first token on is in the loss and nothing before it: what TRL's trainers make of
the row, whose completion begins where the tokens of the prompt, and of prompt and answer, part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec.structs
import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.format.layout import FLAG_DESIRABLE
from shardkit.format.recipe import PREFERENCE, Task
from shardkit.format.samples import IGNORE_INDEX, SEGMENT_DTYPE, Samples
from shardkit.ragged import offsets, spread, within
from shardkit.tokens.encoded import Encoded
from shardkit.tokens.pictures import Placed, Size

Row = Conversation | Exchange
_ANSWERS = ("chosen", "rejected")
_UNLIKE = "the template prints the prompt differently before the chosen and the rejected answer"


def apart(rows: Sequence[Row], task: Task) -> Sequence[Row]:
    """The conversations to encode: of each pair the one with the chosen answer, then the other."""
    if task != PREFERENCE:
        return rows
    return [half for row in rows for half in halves_of(row)]


def halves_of(row: Row) -> tuple[Row, ...]:
    """The conversations of a row that are encoded: two of a pair, else the row."""
    if not isinstance(row, Conversation) or not row.rejected:
        return (row,)
    prompt = row.messages[: row.n_prompt]
    return (
        msgspec.structs.replace(row, rejected=()),
        msgspec.structs.replace(row, messages=(*prompt, *row.rejected), rejected=()),
    )


def sizes_apart(sizes: Mapping[int, Sequence[Size]], task: Task) -> Mapping[int, Sequence[Size]]:
    """The sizes of pictures, by the positions that `apart` gives."""
    if task != PREFERENCE:
        return sizes
    return {2 * i + k: size for i, size in sizes.items() for k in range(2)}


def together(encoded: Encoded, rows: Sequence[Row], task: Task) -> Encoded:
    """The samples of the rows from those of their conversations, and the reasons for the others."""
    if task == PREFERENCE:
        return _paired(encoded)
    samples = encoded.samples
    found = [getattr(rows[i], "label", None) for i in encoded.kept.tolist()]
    flags = np.where(np.array(found, bool), np.uint32(FLAG_DESIRABLE), np.uint32(0))
    labels = _answers_only(samples.ids, samples.starts, _borders(samples))
    return replace(encoded, samples=replace(samples, labels=labels, flags=flags))


def _paired(encoded: Encoded) -> Encoded:
    """The pairs of which both halves were kept, each as one sample; the others are rejected.

    Halves [0, 1, 2, 5] were kept: they are of the rows [0, 0, 1, 2], so the only whole pair begins
    at the first of them.
    """
    halves, row = encoded.samples, encoded.kept // 2
    a = np.flatnonzero(row[1:] == row[:-1])
    borders, starts = _borders(halves), halves.starts
    border = np.minimum(borders[a], borders[a + 1])
    owner = np.repeat(np.arange(len(a)), border)
    one, other = (halves.ids[spread(starts[which], border)] for which in (a, a + 1))
    is_unlike = np.bincount(owner[one != other], minlength=len(a)) > 0
    rejects = {int(row[i]): Reject(Reason.TEMPLATE_FAILED, _UNLIKE) for i in a[is_unlike]}
    for position, reject in reversed(encoded.rejects):
        detail = f"{_ANSWERS[position % 2]}: {reject.detail}"
        rejects[position // 2] = replace(reject, detail=detail)
    a, border = a[~is_unlike], border[~is_unlike]
    samples = _joined(halves, a, border, encoded.n_images)
    return replace(
        encoded,
        samples=samples,
        kept=row[a],
        rejects=sorted(rejects.items()),
        n_images=encoded.n_images[a],
        first_image=encoded.first_image[a],
        piece=np.zeros(len(a), np.uint32),
        pictures=_pictures(encoded, a),
    )


def _joined(
    halves: Samples, a: NDArray[np.int64], border: NDArray[np.int64], n_images: NDArray[np.int64]
) -> Samples:
    """One sample of each pair: half a[i], then half a[i] + 1."""
    chosen = np.stack([a, a + 1], axis=1).ravel()
    lengths = halves.lengths[chosen]
    ids = halves.ids[spread(halves.starts[chosen], lengths)]
    starts = offsets(lengths)
    segments = np.zeros(len(chosen), SEGMENT_DTYPE)
    segments["sample"] = np.arange(len(chosen)) // 2
    segments["start"][1::2] = lengths[::2]
    segments["length"] = lengths
    segments["n_images"] = n_images[chosen]
    segments["n_cut"] = halves.n_cut[chosen]
    return Samples(
        ids=ids,
        labels=_answers_only(ids, starts, np.repeat(border, 2)),
        starts=starts[::2],
        source=np.zeros(len(a), np.uint32),
        record=np.zeros(len(a), np.uint64),
        n_cut=segments["n_cut"][::2] + segments["n_cut"][1::2],
        segments=segments,
    )


def _borders(samples: Samples) -> NDArray[np.int64]:
    """(n,) the first supervised token of each sample, counted from the sample's first token."""
    places = np.flatnonzero(samples.labels != IGNORE_INDEX)
    first = np.searchsorted(places, samples.starts[:-1])
    return places[first] - samples.starts[:-1] if len(first) else np.zeros(0, np.int64)


def _answers_only(
    ids: NDArray[np.int32], starts: NDArray[np.int64], border: NDArray[np.int64]
) -> NDArray[np.int32]:
    """(n,) int32 labels: the ids from each row's border on, -100 before it.

    Rows that begin at [0, 3] of 5, borders [1, 0]: places in their rows are [0, 1, 2, 0, 1].
    """
    lengths = np.diff(starts)
    is_answer = within(lengths) >= np.repeat(border, lengths)
    return np.where(is_answer, ids, np.int32(IGNORE_INDEX))


def _pictures(encoded: Encoded, a: NDArray[np.int64]) -> tuple[tuple[Placed, ...], ...]:
    """The pictures of the pairs, each with its place in both segments."""
    if not encoded.pictures:
        return ()
    lengths = encoded.samples.lengths
    return tuple(
        tuple(replace(one, again=one.first + int(lengths[i])) for one in encoded.pictures[i])
        for i in a.tolist()
    )
