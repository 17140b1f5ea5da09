"""Rows worth a look, over all parts: counts and first examples, for the manifest."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.builder.ledger import HASH_DTYPE
from shardkit.builder.receipt import N_EXAMPLES, Check, Receipt, part_folder
from shardkit.sources import Unread, count_path

ALWAYS = ("truncated", "empty_answer", "no_supervised_tokens", "placeholder_mismatch")
"""Checks that stand in the manifest also when they found nothing; `duplicate` does too."""
BUCKET_ROWS = 1 << 20
MAX_BUCKETS = 256
_PLACED_DTYPE = np.dtype([*HASH_DTYPE.descr, ("position", "<u8")])


def collect_checks(
    receipts: Sequence[Receipt], names: Sequence[str], folder: Path
) -> dict[str, Any]:
    """The manifest's `checks`; examples are [source name, row]."""
    checks = {name: Check() for name in ALWAYS}
    notes: dict[str, int] = {}
    for receipt in receipts:
        for name, check in receipt.checks.items():
            checks.setdefault(name, Check()).add(check)
        for name, n in receipt.notes.items():
            notes[name] = notes.get(name, 0) + n
    checks["duplicate"] = find_duplicates(receipts, folder)
    found: dict[str, Any] = {
        name: _entry(name, check, names) for name, check in sorted(checks.items())
    }
    found["unread_fields"] = _unread(receipts, names)
    return found | {"notes": dict(sorted(notes.items()))}


def _unread(receipts: Sequence[Receipt], names: Sequence[str]) -> dict[str, Any]:
    """Keys of records that nobody read: how often, by source and path."""
    counts: dict[str, Unread] = {}
    for receipt in receipts:
        for source, count in receipt.sources.items():
            for path, n in count.unread.items():
                count_path(counts.setdefault(names[source], Counter()), path, n)
    total = sum(sum(unread.values()) for unread in counts.values())
    fields = {name: dict(sorted(unread.items())) for name, unread in sorted(counts.items())}
    return {"n": total, "examples": [], "fields": {k: v for k, v in fields.items() if v}}


def join_checks(all_checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The checks of several builds as those of one dataset; duplicates are those inside a build."""
    joined: dict[str, Any] = {}
    notes: dict[str, int] = {}
    for checks in all_checks:
        for name, entry in checks.items():
            if name == "notes":
                for note, n in entry.items():
                    notes[note] = notes.get(note, 0) + n
                continue
            total = joined.setdefault(name, {"n": 0, "examples": []})
            total["n"] += entry["n"]
            total["examples"] += entry["examples"][: N_EXAMPLES - len(total["examples"])]
            if name == "unread_fields":
                total.setdefault("fields", {}).update(entry.get("fields", {}))
            if name == "truncated":
                total["n_tokens"] = total.get("n_tokens", 0) + entry.get("n_tokens", 0)
                most = (total.get("most_tokens", 0), entry.get("most_tokens", 0))
                total["most_tokens"] = max(most)
    return dict(sorted(joined.items())) | {"notes": dict(sorted(notes.items()))}


def find_duplicates(receipts: Sequence[Receipt], folder: Path) -> Check:
    """Rows that are equal, token by token, to an earlier row of the build.

    Memory is bounded: row hashes are dealt into files by their value, so that equal ones meet,
    and the files are looked at one by one.
    """
    n_rows = sum(receipt.n_samples for receipt in receipts)
    n_buckets = max(1, min(MAX_BUCKETS, -(-n_rows // BUCKET_ROWS)))
    place = folder / "hashes"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    _deal(receipts, folder, place, n_buckets)
    n, first = 0, np.zeros(0, _PLACED_DTYPE)
    for again in _repeated(place, n_buckets):
        n += len(again)
        first = np.sort(np.concatenate([first, again[:N_EXAMPLES]]), order="position")[:N_EXAMPLES]
    shutil.rmtree(place)
    rows = zip(first["source"].tolist(), first["record"].tolist(), strict=True)
    return Check(n=n, examples=list(rows))


def _deal(receipts: Sequence[Receipt], folder: Path, place: Path, n_buckets: int) -> None:
    """Write every row hash of the parts, with its position in the build, to its bucket's file."""
    position = 0
    with ExitStack() as stack:
        files = [stack.enter_context(open(place / str(i), "wb")) for i in range(n_buckets)]
        for receipt in receipts:
            path = part_folder(folder, receipt.part) / "hashes.npy"
            found = np.load(path, allow_pickle=False)
            rows = np.empty(len(found), _PLACED_DTYPE)
            for name in HASH_DTYPE.names or ():
                rows[name] = found[name]
            rows["position"] = np.arange(position, position + len(rows))
            position += len(rows)
            buckets = rows["hash"] % np.uint64(n_buckets)
            for i in np.unique(buckets).tolist():
                files[i].write(rows[buckets == i].tobytes())


def _repeated(place: Path, n_buckets: int) -> Iterator[NDArray[np.void]]:
    """Of each bucket the rows whose hash stood there before, in the order of the build."""
    for i in range(n_buckets):
        rows = np.fromfile(place / str(i), _PLACED_DTYPE)
        _, first = np.unique(rows["hash"], return_index=True)
        is_again = np.ones(len(rows), np.bool_)
        is_again[first] = False
        yield rows[is_again]


def _entry(name: str, check: Check, names: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "n": check.n,
        "examples": [[names[source], row] for source, row in check.examples],
    }
    if name == "truncated":
        entry |= {"n_tokens": check.n_tokens, "most_tokens": check.most_tokens}
    return entry
