"""The samples of a shard: ids, labels and documents, and what the index says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardkit.check.expected import MAX_PER_KIND, ShardCheck
from shardkit.errors import ShardkitError
from shardkit.format.samples import IGNORE_INDEX


class TokenCheck:
    """Checks the tokens of a shard, all samples at once."""

    def __init__(self, check: ShardCheck) -> None:
        self.check = check
        self.shard = check.shard
        self.expected = check.expected

    def run(self, good: NDArray[np.int64]) -> None:
        """Check the samples whose hash is right, by their numbers."""
        if not len(good):
            return
        tokens = [self.shard.tokens(i) for i in good.tolist()]
        ids = np.concatenate([rows[0] for rows in tokens])
        labels = np.concatenate([rows[1] for rows in tokens])
        index = self.shard.index[good]
        ends = np.cumsum(index["n_tokens"], dtype=np.int64)
        owner = np.repeat(good, index["n_tokens"])
        self._ids(ids, labels, owner)
        n_supervised = _per_sample(labels != IGNORE_INDEX, ends)
        self.check.say_each(
            good, n_supervised != index["n_supervised"], "supervised", "the index miscounts"
        )
        if not self.expected.rules.is_packed:
            self.check.say_each(good, n_supervised == 0, "no-loss", "no token with a label")
        for name, values in self._sizes(good, ids, labels, ends).items():
            self.check.say_each(
                good, index[name] != values, "index", f"{name} is not that of the row"
            )
        self._lengths(good, ids, ends)

    def _ids(
        self, ids: NDArray[np.int32], labels: NDArray[np.int32], owner: NDArray[np.int64]
    ) -> None:
        is_image = np.zeros(len(ids), np.bool_)
        if self.expected.rules.image_token is not None:
            is_image = ids == self.expected.rules.image_token
        bad = ids < 0
        if self.expected.vocab_size is not None:
            bad |= ids >= self.expected.vocab_size
        for at in np.flatnonzero(bad & ~is_image)[: MAX_PER_KIND + 1].tolist():
            self.check.say("id-range", f"id {ids[at]} is outside the vocabulary", int(owner[at]))
        wrong = (labels != IGNORE_INDEX) & ((labels != ids) | is_image)
        for at in np.flatnonzero(wrong)[: MAX_PER_KIND + 1].tolist():
            self.check.say("label-value", f"label {labels[at]} of id {ids[at]}", int(owner[at]))

    def _lengths(
        self, good: NDArray[np.int64], ids: NDArray[np.int32], ends: NDArray[np.int64]
    ) -> None:
        """Placeholders, lengths and documents against what the recipe allows."""
        index, rules = self.shard.index[good], self.expected.rules
        n_images = index["n_images"].astype(np.int64)
        if rules.image_token is not None:
            found = _per_sample(ids == rules.image_token, ends)
            n_times = 1 if rules.is_packed or not rules.has_segments else 2
            self.check.say_each(
                good, found != n_images * n_times, "placeholder", "placeholders and images differ"
            )
        if self.expected.max_length is not None:
            too_long = self._longest_of(index) > self.expected.max_length
            self.check.say_each(good, too_long, "length", f"longer than {self.expected.max_length}")
        if self.shard.segments is not None:
            self._segments(good, self.shard.segments)

    def _longest_of(self, index: NDArray[np.void]) -> NDArray[np.int64]:
        """(n,) what --max-length limits: a row's length, or in preference data a document's."""
        lengths = index["length"].astype(np.int64)
        if self.expected.rules.has_segments and not self.expected.rules.is_packed:
            return lengths // 2  # at least one of two documents is as long
        return lengths

    def _sizes(
        self,
        good: NDArray[np.int64],
        ids: NDArray[np.int32],
        labels: NDArray[np.int32],
        ends: NDArray[np.int64],
    ) -> dict[str, NDArray[np.uint64]]:
        """length, n_image_tokens, cost2 and n_first of the rows, computed again.

        `reduceat` adds up the documents of each row: places [3, 2, 4] of rows of 2 and 1 documents,
        heads [0, 2], are length [5, 4] and cost2 [9 + 4, 16].
        """
        n_tokens = self.shard.index["n_tokens"][good].astype(np.int64)
        firsts, counts = ends - n_tokens, np.ones(len(good), np.int64)
        starts, lengths = firsts, n_tokens
        if self.shard.segments is not None:
            bounds = self.shard.segment_starts
            counts = bounds[good + 1] - bounds[good]
            own = self.shard.segments[np.isin(self.shard.segments["sample"], good)]
            starts = np.repeat(firsts, counts) + own["start"]
            lengths = own["length"].astype(np.int64)
        heads = np.cumsum(counts) - counts
        places, n_image_tokens = lengths, np.zeros(len(good), np.int64)
        rules = self.expected.rules
        if rules.image_token is not None:
            marks = np.concatenate([[0], np.cumsum(ids == rules.image_token)])
            n_marks = marks[starts + lengths] - marks[starts]
            places = lengths + n_marks * (rules.image_tokens - 1)
            n_image_tokens = np.add.reduceat(n_marks, heads) * rules.image_tokens
        else:
            n_image_tokens[:] = [self._image_tokens(i) for i in good.tolist()]
        return {
            "length": np.add.reduceat(places, heads).astype(np.uint64),
            "n_image_tokens": n_image_tokens.astype(np.uint64),
            "cost2": np.add.reduceat(places.astype(np.uint64) ** np.uint64(2), heads),
            "n_first": np.add.reduceat((labels[starts] != IGNORE_INDEX).astype(np.uint64), heads),
        }

    def _image_tokens(self, i: int) -> int:
        """Tokens of the images of sample i, as its JSON member counts them."""
        if not self.shard.index["n_images"][i]:
            return 0
        try:
            meta = self.shard.meta(i)
        except ShardkitError:
            return 0  # said elsewhere
        return sum((one.tokens or 0) * len(one.spans) for one in meta.images) if meta else 0

    def _segments(self, good: NDArray[np.int64], segments: NDArray[np.void]) -> None:
        """Pictures of the documents against those of their rows."""
        bounds = self.shard.segment_starts
        counts = segments["n_images"].astype(np.int64)
        per_row = np.add.reduceat(counts, bounds[:-1])[good]
        n_images = self.shard.index["n_images"][good].astype(np.int64)
        n_times = 1 if self.expected.rules.is_packed else 2
        if not self.expected.rules.is_packed:
            n_documents = np.diff(bounds)[good]
            self.check.say_each(
                good, n_documents != 2, "segments", "a preference row of not two documents"
            )
        self.check.say_each(
            good, per_row != n_images * n_times, "segments", "the documents miscount images"
        )
        cut = np.add.reduceat(segments["n_cut"].astype(np.int64), bounds[:-1])[good]
        wrong = cut != self.shard.index["n_cut"][good]
        self.check.say_each(good, wrong, "segments", "the documents miscount what was cut")


def _per_sample(flags: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many flags are set in each sample: flags [T, F, T], ends [2, 3] → [1, 1]."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    counts: NDArray[np.int64] = np.diff(sums[np.concatenate([[0], ends])])
    return counts
