"""Counts of one part: what became of its rows, which are rejected, and which are worth a look."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.builder.plan import Plan
from shardkit.builder.receipt import N_EXAMPLES, Check, SourceCount
from shardkit.conversation import Conversation, Exchange, Reject
from shardkit.errors import BadInput
from shardkit.format.atomic import appear
from shardkit.format.samples import Samples
from shardkit.sources import Unread

MAX_DETAIL = 600
"""Characters of a reject's detail: a row may hold a whole picture as text."""
HASH_DTYPE = np.dtype([("hash", "<u8"), ("source", "<u4"), ("record", "<u8")])


class Tally:
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
        for source, n in zip(*np.unique(sources, return_counts=True), strict=True):
            self._source(int(source)).n_rows += int(n)
        self.n_rows += len(sources)

    def reject(self, source: int, row: int, reject: Reject) -> None:
        name = self._plan.scans[source].name
        if self._plan.options.on_error == "fail":
            raise BadInput(
                f"rejected: {reject.reason}: {cut_to(reject.detail, MAX_DETAIL)}",
                where=f"{name}, row {row}",
                fix="Mend the row, or use --on-error reject.",
            )
        count = self._source(source)
        count.rejected[reject.reason] = count.rejected.get(reject.reason, 0) + 1
        detail = cut_to(reject.detail, MAX_DETAIL)
        line = {"source": name, "row": row, "reason": reject.reason, "detail": detail}
        self._rejects.append(msgspec.json.encode(line))
        self._count(reject.reason, 1, [(source, row)])

    def unread_of(self, source: int) -> Unread:
        """The counter of the keys of a source's records that nobody reads."""
        return self._unread.setdefault(source, Counter())

    def keep(self, samples: Samples, conversations: list[Conversation | Exchange]) -> None:
        self.n_samples += len(samples)
        cut = samples.n_cut > 0
        for source in np.unique(samples.source).tolist():
            mine = samples.source == source
            count = self._source(source)
            count.n_kept += int(np.count_nonzero(mine))
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

    def write(self, folder: Path) -> None:
        """The rejects and the row hashes, beside the shards; unread keys go to their sources."""
        for source, unread in self._unread.items():
            self._source(source).unread = dict(unread)
        with appear(folder / "rejects.jsonl") as file:
            file.write(b"".join(line + b"\n" for line in self._rejects))
        hashes = np.concatenate([np.zeros(0, HASH_DTYPE), *self._hashes])
        with appear(folder / "hashes.npy") as file:
            np.save(file, hashes, allow_pickle=False)

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
    """Whether no supervised assistant message has any text."""
    if isinstance(conversation, Exchange):
        conversation = conversation.conversation
    for message in reversed(conversation.messages):
        is_supervised = message.role == "assistant" and message.supervised
        if is_supervised and (message.text or message.tool_calls):
            return False
    return bool(conversation.messages)
