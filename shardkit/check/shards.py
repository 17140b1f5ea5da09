"""One shard: is every byte of it what the format and the manifest say?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.check.findings import FOREIGN, Finding, in_words
from shardkit.dataset import Dataset
from shardkit.errors import MissingShard, PictureRefused, ShardkitError, StorageError
from shardkit.format.canonical import canonical_json, sha256_of
from shardkit.format.codec import open_stream
from shardkit.format.layout import (
    BLOCK,
    FOOTER_MEMBER,
    FORMAT_VERSION,
    INDEX_MEMBER,
    SEGMENTS_MEMBER,
    SHARD_MANIFEST_MEMBER,
    TOKENS_START,
)
from shardkit.format.manifest import ShardEntry
from shardkit.format.recipe import TOKEN_ROWS, RowRules
from shardkit.format.render import SampleImage, npy_header
from shardkit.format.samples import IGNORE_INDEX
from shardkit.format.shard import Shard
from shardkit.format.tar import Member, walk
from shardkit.images import BadImage, measure
from shardkit.processors import VisionProcessor

MAX_PER_KIND = 20
"""Findings of one code that a shard reports one by one; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the manifest says of every shard."""

    recipe: dict[str, Any]
    rules: RowRules
    vocab_size: int | None
    max_length: int | None
    source_names: tuple[str, ...]
    picture_token: int | None = None
    """The id that is repeated for a picture, of a dataset that was packed with a processor."""
    processor: VisionProcessor | None = None
    """That processor, where pictures are to be counted again."""


@dataclass(slots=True)
class ShardReport:
    """What was found in one shard, and which source rows it holds."""

    findings: list[Finding] = field(default_factory=list)
    sources: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    records: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """One row of both for each sample that begins here."""
    n_images: int = 0


def check_shard(dataset: Dataset, number: int, expected: Expectation) -> ShardReport:
    """Check a shard against its entry; everything that is wrong becomes a finding.

    What is checked are the bytes that the dataset has now, not an earlier copy of them. Raises
    StorageError when a remote one cannot be read.
    """
    entry = dataset.manifest.shards[number]
    report = ShardReport()
    try:
        with dataset.examine(number) as path:
            _check_file(path, entry, expected, report)
    except MissingShard as err:
        report.findings.append(Finding("shard-open", err.message_line(), shard=entry.name))
    except (*FOREIGN, ShardkitError) as err:
        if isinstance(err, StorageError) and not dataset.is_local:
            raise
        what = f"cannot be checked to its end: {in_words(err)}"
        report.findings.append(Finding("shard-open", what, shard=entry.name))
    return report


def _check_file(path: Path, entry: ShardEntry, expected: Expectation, report: ShardReport) -> None:
    try:
        shard = Shard.open(path, expected=entry, source_names=expected.source_names)
    except ShardkitError as err:
        report.findings.append(Finding("shard-open", err.message_line(), shard=entry.name))
        return
    checker = _ShardChecker(shard, entry, expected, report)
    try:
        checker.run()
    finally:
        shard.close()


class _ShardChecker:
    def __init__(
        self, shard: Shard, entry: ShardEntry, expected: Expectation, report: ShardReport
    ) -> None:
        self.shard = shard
        self.entry = entry
        self.expected = expected
        self.report = report
        self._n_by_code: dict[str, int] = {}

    def run(self) -> None:
        self._file()
        self._identity()
        self._counts()
        good = self._hashes()
        self._frame()
        self._members(good)
        self._tokens(good)
        self._rows()
        for code, n in self._n_by_code.items():
            if n > MAX_PER_KIND:
                more = f"and {n - MAX_PER_KIND} more of this kind"
                self.report.findings.append(Finding(code, more, shard=self.entry.name))

    def say(self, code: str, message: str, i: int | None = None) -> None:
        self._n_by_code[code] = self._n_by_code.get(code, 0) + 1
        if self._n_by_code[code] > MAX_PER_KIND:
            return
        sample = row = None
        if i is not None:
            sample = self.shard.key(i)
            source, record = int(self.shard.index["source"][i]), int(self.shard.index["record"][i])
            names = self.expected.source_names
            row = f"{names[source] if source < len(names) else f'source {source}'} row {record}"
        self.report.findings.append(
            Finding(code, message, shard=self.entry.name, sample=sample, source_row=row)
        )

    def _file(self) -> None:
        with open(self.shard.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.entry.sha256:
            self.say(
                "file-hash",
                f"sha256 {digest[:12]}..., the manifest says {self.entry.sha256[:12]}...",
            )

    def _identity(self) -> None:
        try:
            recipe = self.shard.recipe
        except ShardkitError as err:
            self.say("identity", err.message_line())
            return
        if canonical_json(recipe) != canonical_json(self.expected.recipe):
            self.say("identity", f"made by another recipe, {sha256_of(recipe)[:16]}")

    def _counts(self) -> None:
        index, entry = self.shard.index, self.entry
        found = {
            "n_samples": len(index),
            "n_tokens": int(index["n_tokens"].sum(dtype=np.int64)),
            "n_supervised": int(index["n_supervised"].sum(dtype=np.int64)),
            "n_images": int(index["n_images"].sum(dtype=np.int64)),
            "length": int(index["length"].sum(dtype=np.int64)),
            "longest": int(index["length"].max(initial=0)),
        }
        for name, value in found.items():
            if value != getattr(entry, name):
                self.say("count", f"{name} is {value}, the manifest says {getattr(entry, name)}")
        rules = self.expected.rules
        if self.shard.has_segments != rules.has_segments:
            self.say("packing", "segments where the recipe has none, or the reverse")
        if self.shard.n_rows != len(rules.token_rows):
            self.say("token-rows", f"{self.shard.n_rows} rows, the recipe names {rules.token_rows}")
        unknown = [name for name in rules.token_rows if name not in TOKEN_ROWS]
        if unknown and not self.shard.is_newer:
            self.say("token-rows", f"rows that format {FORMAT_VERSION} does not know: {unknown}")
        n_sources = len(self.expected.source_names)
        for i in np.flatnonzero(index["source"] >= n_sources)[:MAX_PER_KIND]:
            self.say("source", f"source {index['source'][i]} of {n_sources}", int(i))

    def _hashes(self) -> NDArray[np.int64]:
        """The rows whose hash is right."""
        rows = np.arange(self.shard.n_samples)
        try:
            self.shard.check(rows)
        except ShardkitError:
            return np.array([i for i in rows.tolist() if self._is_whole(i)], np.int64)
        return rows

    def _is_whole(self, i: int) -> bool:
        try:
            self.shard.check(np.array([i]))
        except ShardkitError as err:
            self.say("sample-hash", err.message_line(), i)
            return False
        return True

    def _frame(self) -> None:
        """The members before and after the samples, and the end of the archive."""
        footer = self.shard.footer
        stream = open_stream(self.shard.path)
        names = [SHARD_MANIFEST_MEMBER, INDEX_MEMBER]
        places = [footer.manifest, footer.index]
        if footer.segments is not None:
            names.append(SEGMENTS_MEMBER)
            places.append(footer.segments)
        found = [Member(n, p.offset - BLOCK, p.size) for n, p in zip(names, places, strict=True)]
        found.append(Member(FOOTER_MEMBER, stream.size - 4 * BLOCK, BLOCK))
        for wanted, following in zip(found, [None, *found[2:], None], strict=True):
            piece = stream.read(wanted.offset, wanted.end - wanted.offset)
            try:
                got = next(walk(piece, 0, len(piece)), None)
            except ValueError as err:
                self.say("tar", f"{wanted.name}: {err}")
                continue
            if got is None or (got.name, got.size) != (wanted.name, wanted.size):
                self.say("tar", f"{wanted.name} is not where the footer says")
            elif any(piece[BLOCK + wanted.size :]):
                self.say("tar", f"the padding of {wanted.name} is not zero")
            has_gap = following is not None and following.offset != wanted.end
            if following is not None and has_gap and not self.shard.is_newer:
                self.say("tar", f"bytes between {wanted.name} and {following.name}")
        if any(stream.read(stream.size - 2 * BLOCK, 2 * BLOCK)):
            self.say("tar", "the archive does not end with two zero blocks")
        stream.close()

    def _members(self, good: NDArray[np.int64]) -> None:
        n_rows = self.shard.n_rows
        lengths = self.shard.index["n_tokens"]
        for i in good.tolist():
            try:
                members = self.shard.members(i)
            except ShardkitError as err:
                self.say("tar", err.message_line(), i)
                continue
            n_known = self.shard.n_known_members(i)
            for name, wanted in zip(
                (m.name for m in members[:n_known]), self._names(i, n_known), strict=True
            ):
                if not re.fullmatch(wanted, name):
                    self.say("member-name", f"{name!r}", i)
            if len(members) > n_known and not self.shard.is_newer:
                self.say("member-unknown", f"{members[n_known].name!r}", i)
            self._npy(i, members[0], npy_header((n_rows, int(lengths[i]))))
            if n_known > 1:
                self._images(i)

    def _names(self, i: int, n: int) -> Iterator[str]:
        key = self.shard.key(i)
        yield rf"{key}\.tokens\.npy"
        for k in range(n - 2):
            yield rf"{key}\.{k}\.[a-z0-9]+"
        if n > 1:
            yield rf"{key}\.json"

    def _npy(self, i: int, member: Member, header: bytes) -> None:
        entry = self.shard.index[i]
        span = self.shard.span(i)
        tokens = TOKENS_START + self.shard.n_rows * 4 * int(entry["n_tokens"])
        if bytes(span[BLOCK:TOKENS_START]) != header or member.size != tokens - BLOCK:
            self.say("npy", "tokens.npy is not the array that the index describes", i)

    def _images(self, i: int) -> None:
        try:
            meta, images = self.shard.meta(i), self.shard.images(i)
        except ShardkitError as err:
            self.say("image", err.message_line(), i)
            return
        self.report.n_images += len(images)
        listed = meta.images if meta else ()
        if len(listed) != len(images):
            self.say("image", f"{len(images)} images, {len(listed)} in the JSON member", i)
            return
        sizes: list[tuple[int, int] | None] = []
        for about, data in zip(listed, images, strict=True):
            try:
                found = measure(data)
            except BadImage as err:
                self.say("image", f"{about.name}: {err.detail}", i)
                sizes.append(None)
                continue
            sizes.append(found.upright)
            if (found.width, found.height) != (about.width, about.height):
                self.say("image", f"{about.name} is {found.width} x {found.height}", i)
        if self.expected.picture_token is not None:
            self._pictures(i, listed, sizes, self.expected.picture_token)

    def _pictures(
        self,
        i: int,
        listed: Sequence[SampleImage],
        sizes: Sequence[tuple[int, int] | None],
        token: int,
    ) -> None:
        """The tokens of pictures: in their places, and as many as the processor makes."""
        try:
            is_image = self.shard.tokens(i)[0] == token
        except ShardkitError:
            return  # said elsewhere
        wanted = sum((about.tokens or 0) * len(about.spans) for about in listed)
        found = int(np.count_nonzero(is_image))
        if found != wanted:
            self.say("picture", f"{found} image tokens, its pictures have {wanted}", i)
        for about in listed:
            for first, length in about.spans:
                n = int(np.count_nonzero(is_image[first : first + length]))
                if n != about.tokens or first + length > len(is_image):
                    self.say("picture", f"{about.name} has {n} tokens, not {about.tokens}", i)
        if self.expected.processor is None:
            return
        counts = self._pictures_together(i, listed)
        for about, size, together in zip(listed, sizes, counts, strict=True):
            if size is None:
                continue
            try:
                picture = self.expected.processor.picture(size, together)
            except PictureRefused as err:
                self.say("picture", f"{about.name}: {err.message}", i)
                continue
            if (picture.n_tokens, picture.grid) != (about.tokens, tuple(about.grid)):
                made = f"the processor makes {picture.n_tokens} {list(picture.grid)}"
                has = f"{about.name} of {size[0]} x {size[1]} has {about.tokens}"
                self.say("picture", f"{has} {list(about.grid)}, {made}", i)

    def _pictures_together(self, i: int, listed: Sequence[SampleImage]) -> list[int]:
        """Of each picture, how many its document has."""
        if self.shard.segments is None or not self.expected.rules.is_packed:
            return [len(listed)] * len(listed)
        counts = self.shard.segments_of(i)["n_images"].tolist()
        return [n for n in counts for _ in range(n)][: len(listed)]

    def _tokens(self, good: NDArray[np.int64]) -> None:
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
        self._each(good, n_supervised != index["n_supervised"], "supervised", "the index miscounts")
        if not self.expected.rules.is_packed:
            self._each(good, n_supervised == 0, "no-loss", "no token with a label")
        self._lengths(good, ids, labels, ends)

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
            self.say("id-range", f"id {ids[at]} is outside the vocabulary", int(owner[at]))
        wrong = (labels != IGNORE_INDEX) & ((labels != ids) | is_image)
        for at in np.flatnonzero(wrong)[: MAX_PER_KIND + 1].tolist():
            self.say("label-value", f"label {labels[at]} of id {ids[at]}", int(owner[at]))

    def _lengths(
        self,
        good: NDArray[np.int64],
        ids: NDArray[np.int32],
        labels: NDArray[np.int32],
        ends: NDArray[np.int64],
    ) -> None:
        """Placeholders, and what the index says that the rows are to the model."""
        index, rules = self.shard.index[good], self.expected.rules
        n_images = index["n_images"].astype(np.int64)
        if rules.image_token is not None:
            found = _per_sample(ids == rules.image_token, ends)
            n_times = 1 if rules.is_packed or not rules.has_segments else 2
            self._each(
                good, found != n_images * n_times, "placeholder", "placeholders and images differ"
            )
        for name, values in self._sizes(good, ids, labels, ends).items():
            self._each(good, index[name] != values, "index", f"{name} is not that of the row")
        if self.expected.max_length is not None:
            too_long = self._longest_of(index) > self.expected.max_length
            self._each(good, too_long, "length", f"longer than {self.expected.max_length}")
        if self.shard.segments is not None:
            self._segments(good, self.shard.segments)

    def _longest_of(self, index: NDArray[np.void]) -> NDArray[np.int64]:
        """(n,) what --max-length limits: a row, of preference data each document of it."""
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
        """length, n_image_tokens, cost2 and n_first of the rows, computed again."""
        n_tokens = self.shard.index["n_tokens"][good].astype(np.int64)
        firsts, counts = ends - n_tokens, np.ones(len(good), np.int64)
        starts, lengths = firsts, n_tokens
        if self.shard.segments is not None:
            bounds = self.shard.segment_starts
            counts = bounds[good + 1] - bounds[good]
            own = self.shard.segments[np.isin(self.shard.segments["sample"], good)]
            starts = np.repeat(firsts, counts) + own["start"]
            lengths = own["length"].astype(np.int64)
        places, n_image_tokens = lengths, np.zeros(len(good), np.int64)
        rules = self.expected.rules
        if rules.image_token is not None:
            marks = np.concatenate([[0], np.cumsum(ids == rules.image_token)])
            n_marks = marks[starts + lengths] - marks[starts]
            places = lengths + n_marks * (rules.image_tokens - 1)
            heads = np.cumsum(counts) - counts
            n_image_tokens = np.add.reduceat(n_marks, heads) * rules.image_tokens
        else:
            n_image_tokens[:] = [self._image_tokens(i) for i in good.tolist()]
        heads = np.cumsum(counts) - counts
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
            self._each(good, n_documents != 2, "segments", "a preference row of not two documents")
        self._each(good, per_row != n_images * n_times, "segments", "the documents miscount images")
        cut = np.add.reduceat(segments["n_cut"].astype(np.int64), bounds[:-1])[good]
        wrong = cut != self.shard.index["n_cut"][good]
        self._each(good, wrong, "segments", "the documents miscount what was cut")

    def _each(
        self, rows: NDArray[np.int64], wrong: NDArray[np.bool_], code: str, message: str
    ) -> None:
        for i in rows[wrong].tolist():
            self.say(code, message, i)

    def _rows(self) -> None:
        """The source rows that begin here, for the ledger."""
        table = self.shard.index
        if self.shard.segments is not None and self.expected.rules.is_packed:
            table = self.shard.segments[self.shard.segments["first"] == 0]
        self.report.sources = table["source"].copy()
        self.report.records = table["record"].copy()


def _per_sample(flags: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many flags are set in each sample."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    counts: NDArray[np.int64] = np.diff(sums[np.concatenate([[0], ends])])
    return counts
