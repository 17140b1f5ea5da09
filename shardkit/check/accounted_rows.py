"""Is every row of the input kept once, or rejected once?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.check.expected import ShardReport
from shardkit.check.findings import Finding, in_words
from shardkit.dataset import Dataset
from shardkit.errors import StorageError
from shardkit.format.canonical import sha256_hex
from shardkit.format.layout import HUB_FILES, TOKENIZER_FOLDER
from shardkit.format.manifest import FileEntry, Manifest


class RejectLine(msgspec.Struct, frozen=True):
    """A line of rejects.jsonl."""

    source: str
    row: int
    reason: str
    detail: str = ""
    piece: int | None = None
    """Which piece of a row that was split; the row may be kept all the same."""


def read_rejects(dataset: Dataset, name: str) -> list[RejectLine]:
    """The rejected rows of a dataset.

    Raises msgspec.DecodeError or UnicodeDecodeError when the file is damaged, OSError.
    """
    try:
        data = dataset.store.read(name)
    except FileNotFoundError:
        return []
    decode = msgspec.json.Decoder(RejectLine).decode
    return [decode(line) for line in data.splitlines() if line]


def check_files(dataset: Dataset) -> Iterator[Finding]:
    """Files beside the shards: there, and as the manifest says; and files that it does not name."""
    manifest = dataset.manifest
    entries = [(f"{TOKENIZER_FOLDER}/{e.name}", e) for e in manifest.tokenizer_files]
    if manifest.rejects is not None:
        entries.append((manifest.rejects.name, manifest.rejects))
    for name, entry in entries:
        yield from _check_file(dataset, name, entry)
    known = {
        *HUB_FILES,
        "manifest.json",
        TOKENIZER_FOLDER,
        *(shard.name for shard in manifest.shards),
    }
    known |= {manifest.rejects.name} if manifest.rejects else set()
    for name in dataset.store.names() or ():
        if name not in known:
            yield Finding("extra-file", f"{name} is not in the manifest", "warning")


def _check_file(dataset: Dataset, name: str, entry: FileEntry) -> Iterator[Finding]:
    try:
        data = dataset.store.read(name)
    except FileNotFoundError:
        yield Finding("file-missing", f"{entry.name} is not there")
        return
    except (OSError, StorageError) as err:
        if not dataset.is_local:
            raise
        yield Finding("file-missing", f"{entry.name} cannot be read: {in_words(err)}")
        return
    if sha256_hex(data) != entry.sha256:
        yield Finding("file-hash", f"{entry.name} is not the file that the manifest names")


def check_ledger(
    manifest: Manifest, reports: Sequence[ShardReport], rejects: Sequence[RejectLine]
) -> Iterator[Finding]:
    """rows = kept + rejected for every source, and each row is in exactly one place."""
    sources = np.concatenate([np.zeros(0, np.uint32), *(r.sources for r in reports)])
    records = np.concatenate([np.zeros(0, np.uint64), *(r.records for r in reports)])
    rules = (manifest.recipe.get("history"), manifest.recipe.get("overlong"))
    is_split = "split" in rules  # then a row may be several samples
    order = np.argsort(sources, kind="stable")
    records = records[order].astype(np.int64)
    bounds = np.searchsorted(sources[order], np.arange(len(manifest.sources) + 1)).tolist()
    by_source = defaultdict[str, list[RejectLine]](list)
    for line in rejects:
        if line.piece is None:
            by_source[line.source].append(line)
    for name in sorted(by_source.keys() - {source.name for source in manifest.sources}):
        yield Finding("ledger", f"rejects.jsonl names {name}, which is no source")
    for number, source in enumerate(manifest.sources):
        listed = by_source[source.name]
        by_reason = Counter(line.reason for line in listed)
        if source.n_rows != source.n_kept + sum(source.rejected.values()):
            yield Finding("ledger", f"{source.name}: rows are not kept plus rejected")
        if dict(by_reason) != source.rejected:
            yield Finding("ledger", f"{source.name}: rejects.jsonl does not match the ledger")
        kept = records[bounds[number] : bounds[number + 1]]
        if is_split:
            kept = np.unique(kept)
        rejected = np.array([line.row for line in listed], np.int64)
        yield from _check_rows(source.name, source.n_rows, source.n_kept, kept, rejected)


def _check_rows(
    name: str, n_rows: int, n_kept: int, kept: NDArray[np.int64], rejected: NDArray[np.int64]
) -> Iterator[Finding]:
    if len(kept) != n_kept:
        yield Finding("ledger", f"{name}: {len(kept)} rows are in the shards, not {n_kept}")
    rows = np.concatenate([kept, rejected])
    outside = rows[(rows < 0) | (rows >= n_rows)]
    for row in outside[:3].tolist():
        yield Finding("ledger", f"there is no row {row} in {n_rows} rows", source_row=f"{name}")
    seen = np.bincount(rows[(rows >= 0) & (rows < n_rows)], minlength=n_rows)
    for row in np.flatnonzero(seen > 1)[:5].tolist():
        yield Finding("row-twice", "the row is accounted for twice", source_row=f"{name} row {row}")
    for row in np.flatnonzero(seen == 0)[:5].tolist():
        yield Finding(
            "row-lost", "the row is neither kept nor rejected", source_row=f"{name} row {row}"
        )
