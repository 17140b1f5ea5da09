"""Which samples make the batches of this rank, read in blocks ahead of the batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.format.recipe import KTO
from shardkit.loader.collate import RawBatch
from shardkit.loader.fetch import Ahead
from shardkit.loader.lookup import Block, desirable, image_documents
from shardkit.loader.reader import Reader
from shardkit.loader.stats import Timings
from shardkit.loader.world import World
from shardkit.order.arrangement import Arrangement
from shardkit.order.balanced import BalancedOrder
from shardkit.order.by_length import Order
from shardkit.order.cost import DEFAULT_WEIGHTS, Weights, costs_of
from shardkit.order.epoch import batch_positions
from shardkit.order.permute import U64


@dataclass(frozen=True, slots=True)
class Share:
    """The batches that one process, or one worker of it, makes.

    Its k-th batch is step `first_step + k * stride`; step g of rank r takes batch_size positions
    from `origin + (g * world.size + r) * batch_size` on.
    """

    world: World
    batch_size: int
    origin: int
    n_steps: int | None
    """Steps of the whole iteration; None when it never ends."""
    first_step: int = 0
    stride: int = 1

    def positions(self, first: int, n: int) -> U64:
        """(n, batch_size) positions of its batches `first` to `first + n - 1`."""
        per_step = self.world.size * self.batch_size
        step = self.first_step + first * self.stride
        return batch_positions(
            0,
            n,
            batch_size=self.batch_size,
            rank=self.world.rank,
            world_size=self.world.size * self.stride,
            origin=self.origin + step * per_step,
        )

    @property
    def n_batches(self) -> int | None:
        """Batches in this share; None when it never ends."""
        if self.n_steps is None:
            return None
        return max(0, -(-(self.n_steps - self.first_step) // self.stride))


def read_batches(
    reader: Reader,
    order: Order,
    share: Share,
    *,
    with_keys: bool = False,
    with_timings: bool = False,
) -> Iterator[RawBatch]:
    """The batches of a share, not padded yet.

    The first blocks are small, so that the first batch does not wait for thousands of samples
    to be looked up.
    """
    with reader.fetching(_needed(reader, order, share)) as ahead:
        for block, counts in _blocks(reader, order, share, ahead):
            begin = 0
            for n in counts:
                raw = _raw(reader, block, begin, begin + n, with_timings)
                raw.n_padding_rows = share.batch_size - n
                if with_keys:
                    raw.keys = [reader.key(block, i) for i in range(begin, begin + n)]
                yield raw
                begin += n
            del block  # or its shards could not be evicted while the next ones are fetched


def _blocks(
    reader: Reader, order: Order, share: Share, ahead: Ahead | None
) -> Iterator[tuple[Block, list[int]]]:
    """Blocks of samples, each with the number of samples of its batches."""
    for done, positions in _positions(reader, share):
        is_sample = np.ones(positions.shape, np.bool_)
        if order.n_samples is not None:
            is_sample = positions < np.uint64(order.n_samples)
        if ahead is not None:
            ahead.advance(done)
        shards, rows = order.locate(positions[is_sample])
        counts, begin = is_sample.sum(axis=1).tolist(), 0
        for part in reader.shards.affordable(shards, counts):
            end = begin + sum(part)
            yield reader.find(shards[begin:end], rows[begin:end]), part
            begin = end


def _positions(reader: Reader, share: Share) -> Iterator[tuple[int, U64]]:
    """The positions of each block, with the number of its first batch."""
    total, done = share.n_batches, 0
    largest = max(1, reader.block_samples // share.batch_size)
    n = 1
    while total is None or done < total:
        n_now = n if total is None else min(n, total - done)
        yield done, share.positions(done, n_now)
        done, n = done + n_now, min(n * 4, largest)


def _needed(reader: Reader, order: Order, share: Share) -> Iterator[tuple[int, int]]:
    """The shards that the share needs, each with the batch where it is needed anew."""
    if not (isinstance(order, BalancedOrder) and order.balance.scope != "lanes"):
        order = getattr(order, "order", order)  # samples move inside a group and lane only
    before = np.zeros(0, np.int64)
    for done, positions in _positions(reader, share):
        flat = positions.ravel()
        if order.n_samples is not None:
            flat = flat[flat < np.uint64(order.n_samples)]
        shards, first = np.unique(order.locate(flat)[0], return_index=True)
        in_turn = shards[np.argsort(first)]
        for number in in_turn[~np.isin(in_turn, before)].tolist():
            yield done, number
        before = shards


def _raw(reader: Reader, block: Block, begin: int, end: int, with_timings: bool) -> RawBatch:
    timings = Timings() if with_timings else None
    raw = RawBatch(
        rows=reader.read(block, begin, end)
        if timings is None
        else reader.read_timed(block, begin, end, timings),
        documents=None if block.documents is None else block.documents[begin:end],
        task=reader.rules.task,
        flags=desirable(block, begin, end) if reader.rules.task == KTO else None,
        timings=timings,
    )
    if block.n_images is None:
        return raw
    n_images = block.n_images[begin:end]
    with_images = (n_images.nonzero()[0] + begin).tolist()
    if with_images:
        raw.images = reader.images(block, with_images)
        raw.image_rows = np.repeat(np.arange(end - begin), n_images)
        if raw.is_packed:
            raw.image_documents = image_documents(block, with_images)
        raw.where = lambda row: reader.where(block, begin + row)
    return raw


def grouped(
    arrangement: Arrangement,
    order: Order,
    epoch: int,
    members: Sequence[Dataset],
    facts: IndexFacts | None = None,
) -> Order:
    """The order of an epoch, its groups laid out as the arrangement says.

    `facts`: of the members' samples; None: their shards are opened for them.
    """
    balance = arrangement.balance
    if facts is None:
        facts = IndexFacts(members, DEFAULT_WEIGHTS if balance is None else balance.weights)
    return arrangement.grouped(order, epoch, facts.lengths, facts.costs)


class Indexed(Protocol):
    """Whatever gives the index rows of samples."""

    def index(self, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.void]:
        """(n,) rows of the indexes, with at least the columns that are asked for.

        `numbers`: (n,) shards, counted through all members; `rows`: (n,) rows in them.
        """


@dataclass
class IndexFacts:
    """Lengths, images and costs of samples; opens shards anew in every process it is sent to."""

    members: Sequence[Dataset]
    weights: Weights = DEFAULT_WEIGHTS
    """What a token, a squared token and an image token cost."""
    _reader: Indexed | None = field(default=None, repr=False)

    def lengths(
        self, shards: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) places in the model and (n,) images of each sample."""
        index = self._index(shards, rows)
        return index["length"].astype(np.int64), index["n_images"].astype(np.int64)

    def costs(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> U64:
        """(n,) cost of each sample."""
        return costs_of(self._index(shards, rows), self.weights)

    def _index(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.void]:
        if self._reader is None:
            self._reader = Reader(self.members)
        return self._reader.index(shards, rows)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_reader": None}
