"""From (shard, row) arrays to token rows: views into the mapped shards, checked on first read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NoReturn

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import CorruptShard
from shardkit.format.layout import key_of
from shardkit.format.recipe import RowRules
from shardkit.format.tar import skim
from shardkit.loader import lookup
from shardkit.loader.collate import Row
from shardkit.loader.fetch import Ahead, Needed
from shardkit.loader.frames import Frame, FrameCache
from shardkit.loader.lookup import PLAIN, Block
from shardkit.loader.open_shards import OpenShard, OpenShards
from shardkit.loader.options import Access
from shardkit.loader.stats import Timings

BLOCK_SAMPLES = 4096
"""Positions are computed, and samples looked up, in blocks of about this many."""
LOOK_AGAIN_S = 1.0
"""Seconds after which the files of a block are looked at again, before more of it is read."""


class Reader:
    """Reads samples of one or several datasets; keeps shards open, the latest used ones.

    Shards are numbered through all members. Threads may share a reader.
    """

    def __init__(
        self,
        members: Sequence[Dataset],
        access: Access | None = None,
        fetch_ahead: int | None = None,
    ) -> None:
        self.members = tuple(members)
        self.shards = OpenShards(self.members, fetch_ahead)
        self.checks_always = access is not None and access.recheck == "always"
        self.rules = RowRules.of(self.members[0].manifest.recipe)
        self.is_compressed = any(member.is_compressed for member in self.members)
        self.has_images = any(one.manifest.image_recipe is not None for one in self.members)
        self._frames = FrameCache()

    def fetching(self, needed: Needed) -> AbstractContextManager[Ahead | None]:
        """Fetch these shards ahead of reading them; nothing to do where all are local."""
        return self.shards.fetching(needed)

    def find(self, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> Block:
        """Look samples up in the indexes of their shards, which are opened as needed.

        Raises what Dataset.open_shard raises.
        """
        return lookup.find(
            self.shards,
            numbers,
            rows,
            has_documents=self.rules.has_segments,
            has_images=self.has_images,
            is_compressed=self.is_compressed,
            checks_always=self.checks_always,
        )

    def read(self, block: Block, first: int, last: int) -> list[Row]:
        """The token rows of samples first to last - 1 of the block, each (2 * n,).

        Views into the mapped files, or into uncompressed frames. Raises CorruptShard for a
        sample that does not match its hash, and for a file that was cut over a second ago:
        reading behind the end of a mapped file would end the process.
        """
        now = time.monotonic()
        if now - block.looked_at > LOOK_AGAIN_S:
            for group in block.groups:
                group.opened.check_uncut()
            block.looked_at = now
        try:
            self.check(block, first, last)
            data = self._data(block, first, last)
        except CorruptShard:
            if self.shards.is_local:
                raise
            self._fetch_again(block, first, last)
            self.check(block, first, last)
            data = self._data(block, first, last)
        starts, ends = block.starts[first:last], block.ends[first:last]
        return [held.words[a:b] for held, a, b in zip(data, starts, ends, strict=True)]

    def read_timed(self, block: Block, first: int, last: int, timings: Timings) -> list[Row]:
        """The token rows of samples, copied, with a note of the time and the slowest shard."""
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
            if self.shards.replace_damaged(number, opened, block.rows[first:last][is_here]):
                self._frames.drop(number)

    def check(self, block: Block, first: int, last: int) -> None:
        """Check the hashes of samples first to last - 1, unless all were checked before.

        Raises CorruptShard.
        """
        todo = block.to_check
        if todo is None or not (n_fresh := todo.is_fresh.count(1, first, last)):
            return
        places = zip(
            self._data(block, first, last),
            todo.begins[first:last],
            todo.ends[first:last],
            strict=True,
        )
        digest = xxhash.xxh3_64_intdigest
        found = [digest(held.view[begin:end]) for held, begin, end in places]
        expected = todo.hashes[first:last]
        if found != expected:
            is_right = np.equal(found, expected)
            self.refuse(block, first + int(np.argmin(is_right)))
        todo.is_fresh[first:last] = bytes(last - first)
        todo.n_fresh -= n_fresh
        if not todo.n_fresh:
            for _, opened, rows in block.groups:
                opened.shard.is_checked[rows] = True
            block.to_check = None

    def refuse(self, block: Block, i: int) -> NoReturn:
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

    def images(self, block: Block, samples: Sequence[int]) -> list[memoryview]:
        """The encoded images of samples of the block, in reading order.

        `read` has checked these samples. Raises CorruptShard.
        """
        starts, counts = block.image_starts, block.n_images
        if starts is None or counts is None:
            return []
        found: list[memoryview] = []
        for i in samples:
            view = self._data(block, i, i + 1)[0].view
            try:
                found += skim(view, starts[i], int(counts[i]))
            except ValueError:  # Shard.images says what is wrong
                found += block.opened[i].shard.images(int(block.rows[i]))
        return found

    def where(self, block: Block, i: int) -> str:
        """Sample i of the block by shard, key and source row, for messages."""
        return block.opened[i].shard.where(int(block.rows[i]))

    def key(self, block: Block, i: int) -> str:
        """SHARD/KEY of sample i; in a mixture with the number of the dataset before it."""
        name = f"{block.opened[i].shard.name}/{key_of(int(block.rows[i]))}"
        if len(self.members) == 1:
            return name
        return f"{self.shards.member(int(block.numbers[i]))}/{name}"

    @property
    def block_samples(self) -> int:
        """How many samples may be looked up at once without opening too many shards."""
        limit = self.shards.limit
        is_few = len(self.shards) <= limit // 2
        return BLOCK_SAMPLES if is_few else min(BLOCK_SAMPLES, limit // 4)

    def index(self, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.void]:
        """(n,) INDEX_DTYPE rows of samples, from the indexes alone."""
        return lookup.index_of(self.shards, numbers, rows)

    def open(self, number: int) -> OpenShard:
        """The open shard with this number."""
        return self.shards.open(number)

    def close(self) -> None:
        """Let go of all shards; rows that were handed out stay valid."""
        self.shards.close()

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
