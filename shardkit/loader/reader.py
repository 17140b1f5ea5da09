"""From (shard, row) arrays to token rows: views into the mapped shards, checked on first read."""

from __future__ import annotations

import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, NoReturn

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import CorruptShard
from shardkit.format.layout import BLOCK, INDEX_DTYPE, TOKENS_START, key_of
from shardkit.format.shard import Shard
from shardkit.format.tar import skim
from shardkit.loader.collate import Row, as_words
from shardkit.loader.fetch import Ahead, Needed, default_depth
from shardkit.loader.frames import Frame, FrameCache
from shardkit.loader.stats import Timings
from shardkit.storage.cache import Copy

_RECORD = np.dtype((np.void, INDEX_DTYPE.itemsize))
_WORD = 4
"""Bytes of one int32 token. Every token of a shard begins at a multiple of it."""

BLOCK_SAMPLES = 4096
"""Positions are computed, and samples looked up, in blocks of about this many."""
MAX_OPENED = 4096
"""Shards that stay open: each is one of the 65,530 maps that a process may have."""
OPEN_COPIES = 16
"""Shards of remote datasets that stay open although nobody reads them now."""
PLAIN = -1
"""In place of a frame number, for a sample of an uncompressed shard."""


@dataclass(slots=True, eq=False)
class OpenShard:
    """A shard that is open, with what reading its samples quickly needs."""

    shard: Shard
    words: Row
    """The whole file as int32; empty when it is compressed."""
    view: memoryview
    """The same as bytes."""
    records: NDArray[np.void]
    """Its index without the names of the fields: a structured array is gathered field by field,
    which takes fifty times as long."""


@dataclass(slots=True)
class ToCheck:
    """What the hashes of a block's samples are to be, and of which bytes."""

    is_fresh: NDArray[np.bool_]
    """(n,) samples that were not checked yet."""
    n_fresh: int
    begins: list[int]
    ends: list[int]
    """Bytes of each sample's span, from the start of its file or frame."""
    hashes: list[int]


class Group(NamedTuple):
    """The samples of a block that lie in one shard."""

    number: int
    opened: OpenShard
    rows: NDArray[np.int64]
    """In the order of the block."""


@dataclass(slots=True)
class Block:
    """Where some samples are: found at once for many batches, read batch by batch."""

    numbers: NDArray[np.int64]
    """(n,) shards, counted over all members."""
    rows: NDArray[np.int64]
    """(n,) rows in their shards."""
    opened: list[OpenShard]
    starts: list[int]
    """First token of each sample, counted in int32 words from the start of the file."""
    ends: list[int]
    """Where its tokens end, in the same words."""
    n_images: NDArray[np.int64] | None
    """(n,) images of each sample; None when no dataset has any."""
    image_starts: list[int] | None
    """Where the header of its first image is, or would be, from the start of its file or frame."""
    groups: list[Group]
    to_check: ToCheck | None
    """None when every hash was checked before."""
    frames: list[tuple[int, int]] | None
    """(shard, frame) of each sample when they are compressed; starts count from the frame's."""


class Reader:
    """Reads samples of one or several datasets; keeps shards open, the latest used ones.

    Shards are numbered through all members. `fetch_ahead`: shards of remote ones that are fetched
    before they are needed (None: see default_depth). Threads may share a reader.
    """

    def __init__(self, members: Sequence[Dataset], *, fetch_ahead: int | None = None) -> None:
        self.members = tuple(members)
        self._fetch_ahead = fetch_ahead
        self.is_packed = self.members[0].manifest.is_packed
        self.n_rows = 3 if self.is_packed else 2
        self.is_compressed = any(member.is_compressed for member in self.members)
        self.has_images = any(one.manifest.image_recipe is not None for one in self.members)
        self._ends = np.cumsum([len(one.manifest.shards) for one in self.members])
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self._frames = FrameCache()
        self._lock = threading.RLock()
        self._is_local = all(member.is_local for member in self.members)
        self._max_opened = MAX_OPENED if self._is_local else _max_copies()
        self._ahead: list[Ahead] = []

    @contextmanager
    def fetching(self, needed: Needed) -> Iterator[Ahead | None]:
        """Fetch these shards ahead of reading them; nothing to do where all are local."""
        if self._is_local:
            yield None
            return
        chosen = self._fetch_ahead
        depth = self._default_depth if chosen is None else max(1, chosen)
        ahead = Ahead(self._fetched, needed, depth)
        self._ahead.append(ahead)
        try:
            yield ahead
        finally:
            self._ahead.remove(ahead)
            ahead.close()

    def find(self, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> Block:
        """Look samples up in the indexes of their shards, which are opened as needed.

        Raises what Shard.open raises.
        """
        groups, order = self._groups(numbers, rows)
        index = self._index(groups, order)
        offsets = index["offset"].astype(np.int64)
        frames = self._frames_of(groups, order, offsets) if self.is_compressed else None
        starts = (offsets + TOKENS_START) // _WORD
        ends = starts + self.n_rows * index["n_tokens"].astype(np.int64)
        n_images = index["n_images"].astype(np.int64) if self.has_images else None
        shards = {group.number: group.opened for group in groups}
        return Block(
            numbers=numbers,
            rows=rows,
            opened=[shards[number] for number in numbers.tolist()],
            starts=starts.tolist(),
            ends=ends.tolist(),
            n_images=n_images,
            image_starts=None if n_images is None else _to_blocks(_WORD * ends).tolist(),
            groups=groups,
            to_check=_to_check(groups, order, index, offsets),
            frames=frames,
        )

    def read(self, block: Block, first: int, last: int) -> list[Row]:
        """The token rows of samples first to last - 1 of the block, each (2 * n,) or (3 * n,).

        Views into the mapped files, or into uncompressed frames. Raises CorruptShard for a
        sample that does not match its hash.
        """
        try:
            self.check(block, first, last)
            data = self._data(block, first, last)
        except CorruptShard:
            if self._is_local:
                raise
            self._fetch_again(block, first, last)
            self.check(block, first, last)
            data = self._data(block, first, last)
        starts, ends = block.starts[first:last], block.ends[first:last]
        return [held.words[a:b] for held, a, b in zip(data, starts, ends, strict=True)]

    def read_timed(self, block: Block, first: int, last: int, timings: Timings) -> list[Row]:
        """The same, copied, with a note of how long it took and which shard was slowest."""
        rows: list[Row] = []
        for i in range(first, last):
            began = time.perf_counter()
            rows.append(memoryview(bytes(self.read(block, i, i + 1)[0])).cast("i"))
            took = time.perf_counter() - began
            timings.read_s += took
            if took > timings.slowest_s:
                timings.slowest_s, timings.slowest_shard = took, block.opened[i].shard.name
            timings.n_bytes += rows[-1].nbytes
        return rows

    def _fetch_again(self, block: Block, first: int, last: int) -> None:
        """Replace the copies of shards that turned out damaged among these samples."""
        for number in dict.fromkeys(block.numbers[first:last].tolist()):
            is_here = block.numbers[first:last] == number
            opened = block.opened[first + int(np.argmax(is_here))]
            try:
                opened.shard.check(block.rows[first:last][is_here])
            except CorruptShard:
                member, _ = self._member_of(number)
                if member.discard(opened.shard):
                    self._frames.drop(number)
                    fresh = self._open(number)
                    opened.shard, opened.words, opened.view = fresh.shard, fresh.words, fresh.view
                    opened.records = fresh.records

    def check(self, block: Block, first: int, last: int) -> None:
        """Check the hashes of samples first to last - 1, unless all were checked before."""
        todo = block.to_check
        if todo is None or not (n_fresh := int(todo.is_fresh[first:last].sum())):
            return
        places = zip(
            self._data(block, first, last),
            todo.begins[first:last],
            todo.ends[first:last],
            strict=True,
        )
        spans = [held.view[begin:end] for held, begin, end in places]
        found, expected = [*map(xxhash.xxh3_64_intdigest, spans)], todo.hashes[first:last]
        if found != expected:
            is_right = np.equal(found, expected)
            self._refuse(block, first + int(np.argmin(is_right)))
        todo.is_fresh[first:last] = False
        todo.n_fresh -= n_fresh
        if not todo.n_fresh:
            for _, opened, rows in block.groups:
                opened.shard.is_checked[rows] = True
            block.to_check = None

    def _refuse(self, block: Block, i: int) -> NoReturn:
        """Raise CorruptShard for sample i of the block, also when it reads well a second time."""
        shard, row = block.opened[i].shard, block.rows[i : i + 1]
        self._frames.drop(int(block.numbers[i]))
        shard.is_checked[row] = False
        shard.check(row)
        raise CorruptShard(
            "sample did not match its hash when it was read first, and does now",
            where=shard.where(int(row[0])),
            fix="Check the memory and the disk of this machine, and go on from a checkpoint.",
        )

    def images(self, block: Block, i: int) -> list[memoryview]:
        """The encoded images of sample i of the block, in reading order; it was read before."""
        if block.n_images is None or block.image_starts is None:
            return []
        view, n_images = self._data(block, i, i + 1)[0].view, int(block.n_images[i])
        try:
            return [view[data] for data in skim(view, block.image_starts[i], n_images)]
        except ValueError:  # it says what is wrong
            return block.opened[i].shard.images(int(block.rows[i]))

    def where(self, block: Block, i: int) -> str:
        """Sample i of the block by shard, key and source row, for messages."""
        return block.opened[i].shard.where(int(block.rows[i]))

    def key(self, block: Block, i: int) -> str:
        """SHARD/KEY of sample i; in a mixture with the number of the dataset before it."""
        name = f"{block.opened[i].shard.name}/{key_of(int(block.rows[i]))}"
        if len(self.members) == 1:
            return name
        member = int(np.searchsorted(self._ends, block.numbers[i], side="right"))
        return f"{member}/{name}"

    @property
    def block_samples(self) -> int:
        """So many samples may be looked up at once without opening too many shards."""
        is_few = int(self._ends[-1]) <= self._max_opened // 2
        return BLOCK_SAMPLES if is_few else min(BLOCK_SAMPLES, self._max_opened // 4)

    def index(self, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.void]:
        """(n,) INDEX_DTYPE rows of samples, from the indexes alone."""
        return self._index(*self._groups(numbers, rows))

    def open(self, number: int) -> OpenShard:
        """The open shard with this number."""
        with self._lock:
            found = self._opened.get(number)
            if found is not None:
                self._opened.move_to_end(number)
                return found
            found = self._opened[number] = self._open(number)
            if len(self._opened) > self._max_opened:
                self._opened.popitem(last=False)  # closed when the last view of it is gone
            return found

    def close(self) -> None:
        """Let go of all shards; rows that were handed out stay valid."""
        with self._lock:
            self._opened.clear()

    def _groups(
        self, numbers: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[list[Group], NDArray[np.int64]]:
        """The samples shard by shard, all open, and the place in the block of each of them."""
        order = np.argsort(numbers, kind="stable")
        grouped, rows = numbers[order], rows[order]
        borders = [0, *(np.flatnonzero(np.diff(grouped)) + 1).tolist(), len(grouped)]
        shards = grouped[borders[:-1]].tolist() if len(grouped) else []
        groups = [
            Group(number, self.open(number), rows[begin:end])
            for number, (begin, end) in zip(shards, pairwise(borders), strict=False)
        ]
        if not self._is_local:
            self._let_go(len(groups))
        return groups, order

    def _let_go(self, n_needed: int) -> None:
        """Close copies that were read before, so that the cache may evict them."""
        has_limit = any(member.cache_limit is not None for member in self.members)
        with self._lock:
            while len(self._opened) > max(n_needed, 2 if has_limit else OPEN_COPIES):
                self._opened.popitem(last=False)

    def _index(self, groups: Sequence[Group], order: NDArray[np.int64]) -> NDArray[np.void]:
        """The index rows of a block's samples, in the order of the block."""
        index = np.empty(len(order), INDEX_DTYPE)
        if groups:
            records = np.concatenate([group.opened.records.take(group.rows) for group in groups])
            index.view(_RECORD)[order] = records
        return index

    def _frames_of(
        self, groups: Sequence[Group], order: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> list[tuple[int, int]]:
        """(shard, frame) of a block's samples; their offsets count from the frame's start then."""
        numbers, frames = np.empty(len(order), np.int64), np.full(len(order), PLAIN)
        end = 0
        for number, opened, rows in groups:
            begin, end = end, end + len(rows)
            where = order[begin:end]
            numbers[where] = number
            if opened.shard.is_compressed:
                frames[where], starts = opened.shard.frames_of(rows)
                offsets[where] -= starts
        return list(zip(numbers.tolist(), frames.tolist(), strict=True))

    def _member_of(self, number: int) -> tuple[Dataset, int]:
        """The dataset of a shard, and its number there."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        member = self.members[place]
        return member, number - int(self._ends[place]) + len(member.manifest.shards)

    def _fetched(self, number: int) -> Copy | None:
        member, inner = self._member_of(number)
        return None if member.is_local else member.fetch_if_room(inner)

    def _taken(self, number: int) -> Copy | None:
        """A shard that was fetched ahead."""
        for ahead in self._ahead:
            copy = ahead.take(number)
            if copy is not None:
                return copy
        return None

    @property
    def _default_depth(self) -> int:
        entries = (entry for member in self.members for entry in member.manifest.shards)
        return default_depth(max((entry.n_bytes for entry in entries), default=0))

    def _open(self, number: int) -> OpenShard:
        member, inner = self._member_of(number)
        shard = member.open_shard(inner, self._taken(number))
        view = memoryview(b"") if shard.is_compressed else shard.buffer.data
        return OpenShard(shard, as_words(view), view, shard.index.view(_RECORD))

    def _data(self, block: Block, first: int, last: int) -> Sequence[OpenShard | Frame]:
        """What the starts of these samples count in: their files, or their frames."""
        opened = block.opened[first:last]
        if block.frames is None:
            return opened
        get, frames = self._frames.get, block.frames[first:last]
        return [
            shard if key[1] == PLAIN else get(shard.shard, *key)
            for shard, key in zip(opened, frames, strict=True)
        ]


def _to_check(
    groups: Sequence[Group],
    order: NDArray[np.int64],
    index: NDArray[np.void],
    offsets: NDArray[np.int64],
) -> ToCheck | None:
    """What is to be checked of a block."""
    is_fresh = np.zeros(len(order), np.bool_)
    if groups:
        is_checked = np.concatenate([g.opened.shard.is_checked[g.rows] for g in groups])
        is_fresh[order] = ~is_checked
    n_fresh = int(np.count_nonzero(is_fresh))
    if not n_fresh:
        return None
    ends = offsets + index["span"].astype(np.int64)
    return ToCheck(is_fresh, n_fresh, offsets.tolist(), ends.tolist(), index["hash"].tolist())


def _to_blocks(n_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    return (n_bytes + BLOCK - 1) // BLOCK * BLOCK


def _max_copies() -> int:
    """Half of the files that the process may have open: a copy in the cache is one, locked."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPENED if soft == resource.RLIM_INFINITY else max(64, min(MAX_OPENED, soft // 2))
