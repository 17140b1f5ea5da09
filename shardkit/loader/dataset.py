"""The samples of a dataset, as a torch IterableDataset that shares them out by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.format.samples import IMAGE_PLACEHOLDER
from shardkit.loader.batches import IndexLengths, Share, read_batches
from shardkit.loader.collate import Batch, Padding, RawBatch, make_batch, padding_row
from shardkit.loader.images import ImageLayout, ImagePad, ImageStage, make_stage, stack
from shardkit.loader.opened import Expected, open_expected
from shardkit.loader.reader import Reader
from shardkit.loader.table import documents_of, rows_of, sample_of
from shardkit.loader.world import World, find_world, refuse_second_sharing
from shardkit.order.by_length import GroupedOrder, Order
from shardkit.order.epoch import DEFAULT_WINDOW, EpochOrder, Shuffle, n_steps
from shardkit.order.state import Arrangement

Sample = dict[str, Any]
"""One sample for a training script: `input_ids`, `labels` (int64 (n,)), and what goes with them."""


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
    image_transform: Any
    expand_image_tokens: int | None
    image_token_id: int | None
    image_pad: ImagePad
    image_layout: ImageLayout
    image_threads: int
    storage_options: Mapping[str, Any] | None
    cache_dir: str | Path | None
    cache_limit: int | None
    fetch_ahead: int | None


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
    `image_transform`, `expand_image_tokens`, `image_token_id`, `image_pad`, `image_layout`,
    `image_threads`: what becomes of images; see ImageStage.
    `path` may be a URL that fsspec knows (s3://, gs://, hf://, https:// ...): shards are fetched
    ahead into a cache on this node (docs/how-to/remote.md). `storage_options` go to fsspec;
    `cache_dir`: SHARDKIT_CACHE, else ~/.cache/shardkit; `cache_limit`: bytes, shards unused for
    longest are evicted; `fetch_ahead`: shards fetched before they are needed (None: 256 MB, 2 to
    8 shards).
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
        image_transform: Any = None,
        expand_image_tokens: int | None = None,
        image_token_id: int | None = None,
        image_pad: ImagePad = "none",
        image_layout: ImageLayout = "flat",
        image_threads: int = 0,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        cache_limit: int | None = None,
        fetch_ahead: int | None = None,
    ) -> None:
        super().__init__()
        member = open_expected(
            path,
            Expected(tokenizer, template, max_length, images),
            storage_options=storage_options,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
        )
        self.members: tuple[Dataset, ...] = (member,)
        self.fetch_ahead = fetch_ahead
        self.arrangement = Arrangement(
            seed=seed, shuffle=choose_shuffle(shuffle, member), window=window
        )
        self.epoch = epoch
        self.drop_last = drop_last
        pad = member.manifest.pad_token_id if pad_token_id is None else pad_token_id
        self.padding = Padding(pad, pad_to_multiple_of)
        self.stage = make_stage(
            ImageStage(
                transform=image_transform,
                n_tokens=expand_image_tokens,
                token_id=IMAGE_PLACEHOLDER if image_token_id is None else image_token_id,
                pad=image_pad,
                layout=image_layout,
                padding=self.padding,
                n_threads=image_threads,
            ),
            member.manifest.image_recipe,
            member.root,
        )
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
        return self.members[0].manifest.is_packed

    def arrange(self, batch_size: int, lanes: int | None) -> Arrangement:
        """The arrangement of a loader with this batch size: each rank has a lane of its own."""
        return self._arranged(lanes=self.world.size if lanes is None else lanes, chunk=batch_size)

    def n_samples_of(self, arrangement: Arrangement) -> int | None:
        """Samples of one epoch, of all ranks; None when it never ends."""
        return int(self.members[0].sizes.sum(dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        """Of what made the samples; a loader state is refused when it is another."""
        return self.members[0].manifest.fingerprint

    @property
    def content(self) -> str:
        """Of what the shards hold."""
        return self.members[0].manifest.content

    @property
    def reader(self) -> Reader:
        """The reader, which remembers open shards and checked samples."""
        if self._reader is None:
            self._reader = Reader(self.members, fetch_ahead=self.fetch_ahead)
        return self._reader

    def order(self, arrangement: Arrangement, epoch: int) -> Order:
        """The sequence of an epoch."""
        order = arrangement.epoch(epoch, self.members[0].sizes)
        return arrangement.grouped(order, IndexLengths(self.members))

    def check_present(self, order: Order) -> None:
        """Look that the shards that this rank reads are there, with the right size.

        Raises MissingShard or CorruptShard, before anything is read.
        """
        order = order.order if isinstance(order, GroupedOrder) else order
        rank, size = self.world.rank, self.world.size
        if not isinstance(order, EpochOrder) or order.n_lanes % size:
            shards = np.arange(len(self.members[0].sizes))
        else:
            own = [order.shards_of_lane(lane) for lane in range(rank, order.n_lanes, size)]
            shards = np.concatenate(own)
        self.members[0].check_present(shards)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; every rank must choose the same."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples that this rank yields in an epoch, the same on every rank."""
        refuse_second_sharing(self.world.size)
        n_samples = self.n_samples_of(self._vanilla(1))
        if n_samples is None:
            raise TypeError("an endless mixture has no len()")
        return n_steps(
            n_samples, batch_size=1, world_size=self.world.size, drop_last=self.drop_last
        )

    def __iter__(self) -> Iterator[Sample]:
        """The samples of this rank, or of this DataLoader worker of it.

        Sample k of a rank is the epoch's position k * world_size + rank; worker w of W yields
        those with k mod W = w, which is a lane of its own. Raises UsageError when accelerate, or
        a DistributedSampler, is to share the samples out a second time.
        """
        refuse_second_sharing(self.world.size)
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        arrangement = self._vanilla(n_workers)
        order = self.order(arrangement, self.epoch)
        n = None if self.n_samples_of(arrangement) is None else len(self)
        share = Share(self.world, 1, origin=0, n_steps=n, first_step=worker, stride=n_workers)
        self.check_present(order)
        reader, stage = self.reader, self.stage
        if info is not None:  # threads and locks of the parent are not ours
            reader, stage = Reader(self.members, fetch_ahead=self.fetch_ahead), stage.for_worker()
        for raw in read_batches(reader, order, share):
            yield self._sample(raw, stage)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """The padded batch of some samples: the `collate_fn` for a DataLoader (see make_batch)."""
        documents = [documents_of(sample) for sample in samples] if self.is_packed else None
        raw = RawBatch(rows=[rows_of(sample) for sample in samples], documents=documents)
        counts = [
            len(sample.get("images", ())) or len(sample.get("pixel_values", ()))
            for sample in samples
        ]
        if any(counts):
            raw.image_rows = np.repeat(np.arange(len(samples)), counts)
            raw.images = [image for sample in samples for image in sample.get("images", ())]
            raw.pixel_values = stack(
                [pixels.numpy() for sample in samples for pixels in sample.get("pixel_values", ())]
            )
        self.stage.ensure_one(raw)
        return make_batch(self.stage.decode(raw), self.padding)

    def __getstate__(self) -> dict[str, Any]:
        world = self.world
        refuse_second_sharing(world.size)
        return {**self.__dict__, "_world": world, "_reader": None}

    def _arranged(self, *, lanes: int, chunk: int) -> Arrangement:
        return replace(self.arrangement, lanes=lanes, chunk=chunk)

    def _vanilla(self, n_workers: int) -> Arrangement:
        """The arrangement under a plain DataLoader: a lane for each worker of each rank."""
        return self._arranged(lanes=self.world.size * n_workers, chunk=1)

    def _sample(self, raw: RawBatch, stage: ImageStage) -> Sample:
        if not raw.rows:
            raw.rows = [padding_row(self.padding.pad_token_id)]
            raw.documents = [np.ones(1, np.int64)] if self.is_packed else None
        stage.expand(raw)
        sample: Sample = sample_of(raw.rows[0], raw.documents[0] if raw.documents else None)
        if len(raw.images) and stage.transform is None:
            sample["images"] = [bytes(image) for image in raw.images]
        elif len(raw.images):
            sample["pixel_values"] = [
                torch.from_numpy(pixels) for pixels in stage.pixels(raw.images, raw.where_image)
            ]
        return sample


def choose_shuffle(shuffle: bool | Shuffle, dataset: Dataset) -> Shuffle:
    """The shuffle that the option means for this dataset; raises UsageError."""
    if shuffle is True:
        return "window" if dataset.prefers_window else "full"
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
