"""The account of rows: what became of each in a part, and the checks of all parts together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.builder.plan import Plan
from shardkit.builder.receipt import N_EXAMPLES, Check, Receipt, SourceCount, part_folder
from shardkit.conversation import Conversation, Exchange, Reject
from shardkit.errors import BadInput
from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_file
from shardkit.format.layout import REJECTS_NAME
from shardkit.format.samples import Samples
from shardkit.ragged import offsets
from shardkit.sources import Unread, count_path

MAX_DETAIL = 600
"""Characters of a reject's detail: a row may hold a whole picture as text."""
HASH_DTYPE = np.dtype([("hash", "<u8"), ("source", "<u4"), ("record", "<u8"), ("position", "<u8")])
"""A sample's hash and row; `position`: its place among the samples of its part. A part's file is
sorted by hash."""
Map = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Gives the results of tasks in order, whoever does them."""

ALWAYS = ("truncated", "empty_answer", "no_supervised_tokens", "placeholder_mismatch")
"""Checks that stand in the manifest also when they found nothing; `duplicate` does too."""
BUCKET_ROWS = 1 << 20
"""Row hashes that are compared at once, about."""


class Ledger:
    """Counts of one part, and its rejects."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rejects: list[bytes] = []
        self._hashes: list[NDArray[np.void]] = []
        self._unread: dict[int, Unread] = {}
        self.sources: dict[int, SourceCount] = {}
        self.checks: dict[str, Check] = {}
        self.notes: Counter[str] = Counter()
        self.n_rows = 0
        self.n_samples = 0

    def read(self, sources: NDArray[np.int64]) -> None:
        """Count rows that were read, by the number of the source of each: (n,)."""
        for source, n in zip(*np.unique(sources, return_counts=True), strict=True):
            self._source(int(source)).n_rows += int(n)
        self.n_rows += len(sources)

    def reject(self, source: int, row: int, reject: Reject) -> None:
        """Count a row that is not kept, and list it; raises BadInput where the user wants that."""
        self._list(source, row, reject, None)
        count = self._source(source)
        count.rejected[reject.reason] = count.rejected.get(reject.reason, 0) + 1

    def lose_piece(self, source: int, row: int, reject: Reject) -> None:
        """Note that one piece of a row was rejected, which does not count as a row of its own."""
        self._list(source, row, reject, reject.piece)

    def _list(self, source: int, row: int, reject: Reject, piece: int | None) -> None:
        name = self._plan.scans[source].name
        if self._plan.options.on_error == "fail":
            raise BadInput(
                f"rejected: {reject.reason}: {cut_to(reject.detail, MAX_DETAIL)}",
                where=f"{name}, row {row}",
                fix="Mend the row, or use --on-error reject.",
            )
        detail = cut_to(reject.detail, MAX_DETAIL)
        line = {"source": name, "row": row, "reason": reject.reason, "detail": detail}
        if piece is not None:
            line["piece"] = piece
        self._rejects.append(msgspec.json.encode(line))
        if piece == reject.piece:  # a split row's pieces are counted, not the row again
            self._count(reject.reason, 1, [(source, row)])

    def unread_of(self, source: int) -> Unread:
        """The counter of the keys of a source's records that nobody reads."""
        return self._unread.setdefault(source, Counter())

    def keep(self, samples: Samples, conversations: list[Conversation | Exchange]) -> None:
        """Count samples that are kept, and note their hashes; `conversations`: one for each."""
        self.n_samples += len(samples)
        cut = samples.n_cut > 0
        for source in np.unique(samples.source).tolist():
            mine = samples.source == source
            count = self._source(source)
            count.n_kept += len(np.unique(samples.record[mine]))
            count.n_truncated += int(np.count_nonzero(mine & cut))
            count.n_cut_tokens += int(samples.n_cut[mine].sum(dtype=np.int64))
        empty = [
            not one.answer if type(one) is Exchange else is_empty_answer(one)
            for one in conversations
        ]
        self._check("empty_answer", samples, np.array(empty, np.bool_))
        truncated = self._check("truncated", samples, cut)
        truncated.n_tokens += int(samples.n_cut.sum(dtype=np.int64))
        truncated.most_tokens = max(truncated.most_tokens, int(samples.n_cut.max(initial=0)))
        self._hashes.append(row_hashes(samples))

    def write(self, folder: Path) -> dict[str, str]:
        """Write the rejects and the row hashes beside the shards; the sha256 of each file by name.

        Unread keys go to their sources.
        """
        for source, unread in self._unread.items():
            self._source(source).unread = dict(unread)
        with appear(folder / REJECTS_NAME) as file:
            file.write(b"".join(line + b"\n" for line in self._rejects))
        hashes = np.concatenate([np.zeros(0, HASH_DTYPE), *self._hashes])
        hashes["position"] = np.arange(len(hashes))
        hashes = hashes[np.argsort(hashes["hash"], kind="stable")]
        with appear(folder / "hashes.npy") as file:
            np.save(file, hashes, allow_pickle=False)
        return {name: sha256_file(folder / name) for name in (REJECTS_NAME, "hashes.npy")}

    def _check(self, name: str, samples: Samples, which: NDArray[np.bool_]) -> Check:
        rows = np.flatnonzero(which)
        first = rows[:N_EXAMPLES]
        places = zip(samples.source[first].tolist(), samples.record[first].tolist(), strict=True)
        return self._count(name, len(rows), list(places))

    def _count(self, name: str, n: int, places: list[tuple[int, int]]) -> Check:
        check = self.checks.setdefault(name, Check())
        check.add(Check(n, places))
        return check

    def _source(self, source: int) -> SourceCount:
        return self.sources.setdefault(source, SourceCount())


def over_limit(n: int, n_all: int, limit: float | None) -> str | None:
    """What --max-rejects allows, in words, when `n` of `n_all` rows are more; else None."""
    if limit is None or n <= (limit * n_all if limit < 1 else limit):
        return None
    return f"at most {limit:g}" if limit >= 1 else f"at most {limit:.2%} of {n_all}"


def cut_to(text: str, length: int) -> str:
    """The text, its middle left out where it is longer."""
    head = (length - 5) * 2 // 3
    return text if len(text) <= length else f"{text[:head]} ... {text[head + 5 - length :]}"


def row_hashes(samples: Samples) -> NDArray[np.void]:
    """One HASH_DTYPE row per sample; equal token rows with equal images have equal hashes."""
    out = np.zeros(len(samples), HASH_DTYPE)
    out["source"], out["record"] = samples.source, samples.record
    data = samples.ids.data.cast("B")
    bounds = (samples.starts * 4).tolist()
    digest = xxhash.xxh3_64_intdigest
    hashes = [digest(data[a:b]) for a, b in pairwise(bounds)]
    for i, images in enumerate(samples.images):
        for image in images:
            hashes[i] = digest(image.data, seed=hashes[i])
    out["hash"] = hashes
    return out


def is_empty_answer(conversation: Conversation | Exchange) -> bool:
    """Whether no supervised assistant message has text or a call; False for rows of ids."""
    if isinstance(conversation, Exchange):
        conversation = conversation.conversation
    for message in reversed(conversation.messages):
        is_supervised = message.role == "assistant" and message.supervised
        if is_supervised and (message.text or message.tool_calls):
            return False
    return bool(conversation.messages)


def in_turn(call: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """The results of tasks, done here one after the other."""
    return [call(task) for task in tasks]


def collect_checks(
    receipts: Sequence[Receipt], names: Sequence[str], folder: Path, mapped: Map = in_turn
) -> dict[str, Any]:
    """The manifest's `checks`; examples are [source name, row]."""
    checks = {name: Check() for name in ALWAYS}
    notes: dict[str, int] = {}
    for receipt in receipts:
        for name, check in receipt.checks.items():
            checks.setdefault(name, Check()).add(check)
        for name, n in receipt.notes.items():
            notes[name] = notes.get(name, 0) + n
    checks["duplicate"] = find_duplicates(receipts, folder, mapped)
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


def find_duplicates(receipts: Sequence[Receipt], folder: Path, mapped: Map = in_turn) -> Check:
    """Rows that are equal, token by token, to an earlier row of the build.

    Memory is bounded: row hashes are looked at in ranges of their values, so that equal ones meet.
    """
    n_rows = [receipt.n_samples for receipt in receipts]
    n_buckets = max(1, -(-sum(n_rows) // BUCKET_ROWS))
    paths = [part_folder(folder, receipt.part) / "hashes.npy" for receipt in receipts]
    places = list(zip(map(str, paths), offsets(n_rows).tolist(), strict=False))
    found = mapped(_repeated, [(places, i, n_buckets) for i in range(n_buckets)])
    first = sorted(one for _, some in found for one in some)[:N_EXAMPLES]
    return Check(n=sum(n for n, _ in found), examples=[(source, row) for _, source, row in first])


def _repeated(
    task: tuple[list[tuple[str, int]], int, int],
) -> tuple[int, list[tuple[int, int, int]]]:
    """How many rows of one range of hashes stood there before; (position, source, row) of some.

    `task`: (path of a part's hashes, samples before the part) of every part, the number of the
    range, and how many ranges there are. Sorted hashes [4, 4, 4, 9]: the second and the third row
    are again there, since the sort is stable and parts come in order.
    """
    places, bucket, n_buckets = task
    size = -(-(1 << 64) // n_buckets)
    low, high = bucket * size, (bucket + 1) * size - 1
    parts = [np.zeros(0, HASH_DTYPE)]
    for path, position in places:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        begin = np.searchsorted(held["hash"], np.uint64(low))
        end = np.searchsorted(held["hash"], np.uint64(min(high, (1 << 64) - 1)), side="right")
        rows = np.array(held[begin:end])
        rows["position"] += np.uint64(position)
        parts.append(rows)
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows["hash"], kind="stable")]
    again = rows[1:][rows["hash"][1:] == rows["hash"][:-1]]
    again = again[np.argsort(again["position"])]
    return len(again), again[["position", "source", "record"]][:N_EXAMPLES].tolist()


def _entry(name: str, check: Check, names: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "n": check.n,
        "examples": [[names[source], row] for source, row in check.examples],
    }
    if name == "truncated":
        entry |= {"n_tokens": check.n_tokens, "most_tokens": check.most_tokens}
    return entry
