"""The shards of one or several datasets: numbered through, opened when needed, the latest kept."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import CorruptShard
from shardkit.format.layout import INDEX_DTYPE
from shardkit.format.recipe import RowRules
from shardkit.format.shard import Shard
from shardkit.loader.collate import Row, as_words
from shardkit.loader.fetch import Ahead, Needed, default_depth
from shardkit.storage.locked_copy import Copy

RECORD = np.dtype((np.void, INDEX_DTYPE.itemsize))
"""An index row without the names of its fields."""
MAX_OPENED = 4096
"""Shards that stay open: each is one of the 65,530 maps that a process may have."""
LOOK_AGAIN_S = 0.01
"""Seconds after which a shard that is open is looked at again, before more of it is looked up."""
OPEN_COPIES = 16
"""Shards of remote datasets that stay open although nobody reads them now."""


@dataclass(slots=True, eq=False)
class OpenShard:
    """A shard that is open, with what reading its samples quickly needs."""

    shard: Shard
    words: Row
    """The whole file as int32; empty when it is compressed."""
    view: memoryview
    """The whole file as bytes; empty when it is compressed."""
    records: NDArray[np.void]
    """The shard's index without the names of the fields: a structured array is gathered field by
    field, which takes fifty times as long."""
    documents: NDArray[np.int64]
    """(n,) the tokens of every document of the shard; empty where rows are single documents."""
    firsts: list[int]
    """The first of these documents of each row, and their number in all; or empty."""
    n_bytes: int
    """Bytes of the file."""
    inode: tuple[int, int]
    """Device and inode number of the file."""
    path: str
    offsets: memoryview
    n_tokens: memoryview
    is_checked: memoryview
    """Columns of the index, and of what was checked, for one row at a time: an element of a
    memoryview costs a tenth of one of a structured array."""
    looked_at: float = field(default_factory=time.monotonic)
    """The time.monotonic() at which the file was last seen to have all its bytes."""

    def is_right(self, row: int) -> bool:
        """Whether a row of an uncompressed shard matches its hash, which is then noted."""
        index = self.shard.index[row]
        begin = self.offsets[row]
        span = self.view[begin : begin + int(index["span"])]
        is_right = xxhash.xxh3_64_intdigest(span) == int(index["hash"])
        self.shard.is_checked[row] = is_right
        return is_right

    def look_again(self) -> None:
        """Do what `check_uncut` does, when the file was not looked at for LOOK_AGAIN_S seconds."""
        now = time.monotonic()
        if now - self.looked_at > LOOK_AGAIN_S:
            self.check_uncut()
            self.looked_at = now

    def check_uncut(self) -> None:
        """Raise CorruptShard when the mapped file was cut: reading it would end the process.

        One that was removed, or another file under its name, does no harm to the map.
        """
        try:
            now = os.stat(self.path)
        except OSError:
            return
        if (now.st_dev, now.st_ino) == self.inode and now.st_size < self.n_bytes:
            raise CorruptShard(
                "the file was cut while it was read",
                where=self.shard.label,
                expected=f"{self.n_bytes} bytes",
                found=f"{now.st_size} bytes",
                fix="Write files anew and rename them, never in place. Copy the shard back, or "
                "rebuild it: shardkit repair DATASET --source FILE ...",
            )


class OpenShards:
    """Opens shards and keeps the latest used ones; fetches those of remote datasets ahead.

    Shards are numbered through all members. `fetch_ahead`: shards of remote members that are
    fetched before they are needed (None: see default_depth). Threads may share it.
    """

    def __init__(self, members: Sequence[Dataset], fetch_ahead: int | None = None) -> None:
        self.members = tuple(members)
        self.is_local = all(member.is_local for member in self.members)
        self._fetch_ahead = fetch_ahead
        self._ends = np.cumsum([len(one.manifest.shards) for one in self.members])
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.RLock()
        self._ahead: list[Ahead] = []
        self.limit = MAX_OPENED if self.is_local else _max_copies()
        """Shards that are open at a time, at most."""
        self._stay_open = self.is_local and len(self) <= self.limit

    def __len__(self) -> int:
        return int(self._ends[-1])

    def member(self, number: int) -> int:
        """The member that a shard belongs to."""
        return int(np.searchsorted(self._ends, number, side="right"))

    def open(self, number: int) -> OpenShard:
        """The open shard with this number; raises what Dataset.open_shard raises."""
        if self._stay_open:  # nothing is closed, so nobody has to know which was used last
            held = self._opened.get(number)
            if held is not None:
                held.look_again()
                return held
        with self._lock:
            found = self._opened.get(number)
            if found is not None:
                self._opened.move_to_end(number)
                found.look_again()
                return found
            found = self._opened[number] = self._open(number)
            if len(self._opened) > self.limit:
                self._opened.popitem(last=False)  # closed when the last view of it is gone
            return found

    def let_go(self, n_needed: int) -> None:
        """Close copies that were read before, but `n_needed`, so that the cache may evict them."""
        if self.is_local:
            return
        has_limit = any(member.cache_limit is not None for member in self.members)
        with self._lock:
            while len(self._opened) > max(n_needed, 2 if has_limit else OPEN_COPIES):
                self._opened.popitem(last=False)

    def affordable(self, numbers: NDArray[np.int64], counts: list[int]) -> Iterator[list[int]]:
        """The batches of a block, in parts whose shards take a third of the cache's limit at most.

        A part is read, the one before may still be held, and the next one is fetched.

        `numbers`: the shard of each sample; `counts`: samples of each batch. A part has at least
        one batch.
        """
        limits = [one.cache_limit for one in self.members if one.cache_limit is not None]
        if not limits:
            yield counts
            return
        part: list[int] = []
        held: set[int] = set()
        begin = 0
        for n in counts:
            needed = {*numbers[begin : begin + n].tolist()}
            if part and sum(map(self._n_bytes, held | needed)) > min(limits) // 3:
                yield part
                part, held = [], set()
            part.append(n)
            held |= needed
            begin += n
        if part:
            yield part

    def _n_bytes(self, number: int) -> int:
        member, inner = self._member_of(number)
        return member.manifest.shards[inner].n_bytes

    def close(self) -> None:
        """Let go of all shards; rows that were handed out stay valid."""
        with self._lock:
            self._opened.clear()

    @contextmanager
    def fetching(self, needed: Needed) -> Iterator[Ahead | None]:
        """Fetch these shards ahead of reading them; nothing to do where all are local."""
        if self.is_local:
            yield None
            return
        chosen = self._fetch_ahead
        depth = self._default_depth if chosen is None else chosen
        ahead = Ahead(self._fetched, needed, depth)
        self._ahead.append(ahead)
        try:
            yield ahead
        finally:
            self._ahead.remove(ahead)
            ahead.close()

    def replace_damaged(self, number: int, opened: OpenShard, rows: NDArray[np.int64]) -> bool:
        """Fetch a copy again when these samples of it are damaged; False when it stays as it is."""
        try:
            opened.shard.check(rows)
        except CorruptShard:
            if self.members[self.member(number)].discard(opened.shard):
                fresh = self._open(number)
                opened.shard, opened.words, opened.view = fresh.shard, fresh.words, fresh.view
                opened.records, opened.path = fresh.records, fresh.path
                opened.inode, opened.looked_at = fresh.inode, fresh.looked_at
                opened.documents, opened.firsts = fresh.documents, fresh.firsts
                opened.offsets, opened.n_tokens = fresh.offsets, fresh.n_tokens
                opened.is_checked = fresh.is_checked
                return True
        return False

    def _open(self, number: int) -> OpenShard:
        member, inner = self._member_of(number)
        shard = member.open_shard(inner, self._taken(number))
        _check_segments(shard, member)
        view = memoryview(b"") if shard.is_compressed else shard.buffer.data
        records, n_bytes = shard.index.view(RECORD), member.manifest.shards[inner].n_bytes
        documents = np.zeros(0, np.int64)
        if shard.segments is not None:
            documents = shard.segments["length"].astype(np.int64)
        firsts = shard.segment_starts.tolist()
        return OpenShard(
            shard=shard,
            words=as_words(view),
            view=view,
            records=records,
            documents=documents,
            firsts=firsts,
            n_bytes=n_bytes,
            inode=_inode_of(shard),
            path=str(shard.path),
            offsets=shard.index["offset"].data,
            n_tokens=shard.index["n_tokens"].data,
            is_checked=shard.is_checked.data,
        )

    def _member_of(self, number: int) -> tuple[Dataset, int]:
        """The dataset of a shard, and its number there."""
        place = self.member(number)
        member = self.members[place]
        return member, number - int(self._ends[place]) + len(member.manifest.shards)

    def _fetched(self, number: int) -> Copy | None:
        member, inner = self._member_of(number)
        return None if member.is_local else member.fetch_if_room(inner)

    def _taken(self, number: int) -> Copy | None:
        """The copy of a shard that was fetched ahead; None when there is none."""
        for ahead in self._ahead:
            copy = ahead.take(number)
            if copy is not None:
                return copy
        return None

    @property
    def _default_depth(self) -> int:
        entries = (entry for member in self.members for entry in member.manifest.shards)
        return default_depth(max((entry.n_bytes for entry in entries), default=0))


def _inode_of(shard: Shard) -> tuple[int, int]:
    try:
        now = os.stat(shard.path)
    except OSError:  # removed just now: a map of it stays whole
        return -1, -1
    return now.st_dev, now.st_ino


def _max_copies() -> int:
    """Half of the files that the process may have open: a copy in the cache is one, locked."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPENED if soft == resource.RLIM_INFINITY else max(64, min(MAX_OPENED, soft // 2))


def _check_segments(shard: Shard, member: Dataset) -> None:
    """Raise CorruptShard unless a shard lists the documents of its rows as the recipe says."""
    rules = RowRules.of(member.manifest.recipe)
    if shard.has_segments != rules.has_segments:
        has, wants = ("with", "without") if shard.has_segments else ("without", "with")
        raise CorruptShard(
            "the shard does not list the documents of its rows as its dataset's recipe has it",
            where=shard.label,
            expected=f"{wants} segments (packing {member.manifest.recipe.get('packing')!r})",
            found=f"{has} segments",
            fix="Run `shardkit verify`; copy shard and manifest.json back, or pack again.",
        )
