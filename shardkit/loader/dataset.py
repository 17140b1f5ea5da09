"""The samples of a dataset, as a torch IterableDataset that shares them out by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from shardkit.errors import UsageError
from shardkit.format.samples import IGNORE_INDEX
from shardkit.loader.collate import Batch, Padding, RawBatch, make_batch
from shardkit.loader.identity import Expected
from shardkit.loader.reader import Reader
from shardkit.loader.source import Source, open_source
from shardkit.loader.steps import Order, Share, read_batches
from shardkit.loader.world import World, find_world
from shardkit.order.epoch import DEFAULT_WINDOW, EpochOrder, Shuffle, n_steps

Sample = dict[str, Any]
"""One sample for a training script: `input_ids`, `labels` (int64 (n,)), and what goes with them."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What decides the order of every epoch, beside the dataset (docs/format.md, section 8)."""

    seed: int = 0
    lanes: int = 1
    chunk: int = 1
    shuffle: Shuffle = "full"
    window: int = DEFAULT_WINDOW
    group: int = 0
    """Positions among which samples are sorted by length; 0: they are not."""


class DatasetOptions(TypedDict, total=False):
    """The options of ShardDataset, for those who pass them on."""

    shuffle: bool | Shuffle
    seed: int
    epoch: int
    rank: int | None
    world_size: int | None
    group: object | None
    tokenizer: object
    template: object
    max_length: int | None
    images: Mapping[str, Any] | None
    drop_last: bool
    window: int
    pad_token_id: int | None
    pad_to_multiple_of: int


class ShardDataset(IterableDataset[Sample]):
    """The samples of one dataset that belong to this rank.

    Right under `DataLoader(dataset, batch_size=B, num_workers=W, collate_fn=dataset.collate)`:
    ranks and workers read disjoint samples, together all of them, and every rank makes the same
    number of batches. For exact resume, an order that does not depend on W, and speed, use
    ShardLoader.

    `shuffle`: True is `full`, or `window` for compressed or remote shards; False is file order.
    `rank` and `world_size` are the data-parallel ones (`group`: see find_world).
    `tokenizer`, `template`, `max_length`, `images`: what the run uses; a dataset that was packed
    with something else is refused with IdentityMismatch.
    `drop_last=True` leaves out the last samples that cannot be shared out equally;
    False adds samples whose labels are all -100 instead.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shuffle: bool | Shuffle = True,
        seed: int = 0,
        epoch: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        group: object | None = None,
        tokenizer: object = None,
        template: object = None,
        max_length: int | None = None,
        images: Mapping[str, Any] | None = None,
        drop_last: bool = True,
        window: int = DEFAULT_WINDOW,
        pad_token_id: int | None = None,
        pad_to_multiple_of: int = 1,
    ) -> None:
        super().__init__()
        source = open_source(path, Expected(tokenizer, template, max_length, images))
        self.sources: tuple[Source, ...] = (source,)
        self.arrangement = Arrangement(
            seed=seed, shuffle=choose_shuffle(shuffle, source), window=window
        )
        self.epoch = epoch
        self.drop_last = drop_last
        pad = source.pad_token_id if pad_token_id is None else pad_token_id
        self.padding = Padding(pad, pad_to_multiple_of)
        self._world = find_world(rank, world_size, group=group)
        self._reader: Reader | None = None

    @property
    def world(self) -> World:
        """The data-parallel place; looked for again as long as nothing said it."""
        if not self._world.is_found:
            self._world = find_world()
        return self._world

    @property
    def is_packed(self) -> bool:
        """Whether a sample is a pack of several documents."""
        return self.sources[0].manifest.is_packed

    @property
    def n_samples(self) -> int:
        """Samples of one epoch, of all ranks."""
        return int(self.sources[0].sizes.sum(dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        """Of what made the samples; a loader state is refused when it is another."""
        return self.sources[0].manifest.fingerprint

    @property
    def content(self) -> str:
        """Of what the shards hold."""
        return self.sources[0].manifest.content

    @property
    def reader(self) -> Reader:
        """The reader, which remembers open shards and checked samples."""
        if self._reader is None:
            self._reader = Reader(self.sources)
        return self._reader

    def order(self, arrangement: Arrangement, epoch: int) -> Order:
        """The sequence of an epoch."""
        order = EpochOrder(
            self.sources[0].sizes,
            seed=arrangement.seed,
            epoch=epoch,
            lanes=arrangement.lanes,
            chunk=arrangement.chunk,
            shuffle=arrangement.shuffle,
            window=arrangement.window,
        )
        return order

    def check_present(self, order: Order) -> None:
        """Look that the shards that this rank reads are there, with the right size.

        Raises MissingShard or CorruptShard, before anything is read.
        """
        lanes = order.n_lanes if isinstance(order, EpochOrder) else 1
        world = self.world
        if not isinstance(order, EpochOrder) or lanes % world.size:
            shards = np.arange(len(self.sources[0].sizes))
        else:
            own = [order.shards_of_lane(lane) for lane in range(world.rank, lanes, world.size)]
            shards = np.unique(np.concatenate(own))
        self.sources[0].check_present(shards)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; every rank must choose the same."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples that this rank yields in an epoch, the same on every rank."""
        return n_steps(
            self.n_samples, batch_size=1, world_size=self.world.size, drop_last=self.drop_last
        )

    def __iter__(self) -> Iterator[Sample]:
        """The samples of this rank, or of this DataLoader worker of it.

        Sample k of a rank is the epoch's position k * world_size + rank; worker w of W yields
        those with k mod W = w, which is a lane of its own.
        """
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        lanes = self.world.size * n_workers
        order = self.order(replace(self.arrangement, lanes=lanes, chunk=1), self.epoch)
        share = Share(
            self.world, 1, origin=0, n_steps=len(self), first_step=worker, stride=n_workers
        )
        self.check_present(order)
        for raw in read_batches(self.reader, order, share):
            yield self._sample(raw)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """The padded batch of some samples: the `collate_fn` for a DataLoader (see make_batch)."""
        rows = [_rows_of(sample) for sample in samples]
        raw = RawBatch(rows=rows, is_packed=self.is_packed)
        return make_batch(raw, self.padding)

    def __getstate__(self) -> dict[str, Any]:
        world = self.world
        return {**self.__dict__, "_world": world, "_reader": None}

    def _sample(self, raw: RawBatch) -> Sample:
        rows = raw.rows[0] if raw.rows else padding_row(self.padding, is_packed=self.is_packed)
        values = torch.from_numpy(rows.astype(np.int64)).unbind()
        return dict(zip(("input_ids", "labels", "position_ids"), values, strict=False))


def choose_shuffle(shuffle: bool | Shuffle, source: Source) -> Shuffle:
    """The shuffle that the option means for this dataset; raises UsageError."""
    if shuffle is True:
        return "window" if source.prefers_window else "full"
    if shuffle is False:
        return "none"
    if shuffle not in ("full", "window", "none"):
        raise UsageError(
            "there is no such shuffle",
            expected="True, False, 'full', 'window' or 'none'",
            found=repr(shuffle),
            fix="Use shuffle=True.",
        )
    return shuffle


def padding_row(padding: Padding, *, is_packed: bool) -> NDArray[np.int32]:
    """A sample of one token that adds nothing to the loss."""
    values = [padding.pad_token_id, IGNORE_INDEX, 0]
    return np.array(values[: 3 if is_packed else 2], np.int32)[:, None]


def _rows_of(sample: Sample) -> NDArray[np.int64]:
    names = ("input_ids", "labels", "position_ids")
    return np.stack([sample[name].numpy() for name in names if name in sample])
