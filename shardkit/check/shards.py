"""One shard: is every byte of it what the format and the manifest say?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.check.expected import MAX_PER_KIND, Expectation, ShardCheck, ShardReport
from shardkit.check.findings import FOREIGN, Finding, in_words
from shardkit.check.stored_pictures import PictureCheck
from shardkit.check.stored_tokens import TokenCheck
from shardkit.dataset import Dataset
from shardkit.errors import MissingShard, ShardkitError, StorageError
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
from shardkit.format.recipe import TOKEN_ROWS
from shardkit.format.render import npy_header
from shardkit.format.shard import Shard
from shardkit.format.tar import Member, walk


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


class _ShardChecker(ShardCheck):
    """All checks of one shard, in turn."""

    def run(self) -> None:
        self._file()
        self._identity()
        self._counts()
        good = self._hashes()
        self._frame()
        self._members(good)
        TokenCheck(self).run(good)
        self._rows()
        self.say_how_many_more()

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
        pictures = PictureCheck(self)
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
                pictures.run(i)

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

    def _rows(self) -> None:
        """The source rows that begin here, for the ledger."""
        table = self.shard.index
        if self.shard.segments is not None and self.expected.rules.is_packed:
            table = self.shard.segments[self.shard.segments["first"] == 0]
        self.report.sources = table["source"].copy()
        self.report.records = table["record"].copy()
