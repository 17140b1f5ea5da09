"""The samples of a dataset, as a torch IterableDataset that shares them out by arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

import msgspec
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from shardkit.dataset import Dataset, default_shuffle
from shardkit.errors import UsageError
from shardkit.format.recipe import KTO, PREFERENCE, RowRules
from shardkit.loader.batch_maker import BatchMaker
from shardkit.loader.batches import IndexFacts, Share, grouped, read_batches
from shardkit.loader.collate import Batch, Padding, RawBatch, padding_row
from shardkit.loader.images import ImageStage, stack, stage_of
from shardkit.loader.opened import open_expected
from shardkit.loader.options import DatasetOptions, Epoch, LoaderOptions
from shardkit.loader.pairs import padding_pair
from shardkit.loader.reader import Reader
from shardkit.loader.table import raw_of, sample_of
from shardkit.loader.vision import VisionStage, vision_stage_of
from shardkit.loader.world import World, find_world, refuse_second_sharing
from shardkit.options import FilePath, check
from shardkit.order.arrangement import Arrangement
from shardkit.order.balanced import BalancedOrder
from shardkit.order.by_length import GroupedOrder, Order
from shardkit.order.epoch import EpochOrder, Shuffle, n_steps
from shardkit.order.state import ShareState

Sample = dict[str, Any]
"""One sample for a training script: `input_ids`, `labels` (int64 (n,)), and what goes with them."""


class ShardDataset(IterableDataset[Sample]):
    """The samples of one dataset that belong to this rank.

    Right under `DataLoader(dataset, batch_size=B, num_workers=W, collate_fn=dataset.collate)`:
    ranks and workers read disjoint samples, together all of them, and every rank makes the same
    number of batches. For exact resume, an order that does not depend on W, and speed, use
    ShardLoader.

    `shuffle`: True is `full`, or `window` for compressed or remote shards; False is file order.
    `window`: consecutive samples of a lane among which `window` shuffles; `seed`, `epoch`: what the
    order is drawn from. `pad_token_id` (None: the tokenizer's) and `pad_to_multiple_of`: how
    batches are padded.
    `rank` and `world_size` are the data-parallel ones (`group`: see find_world).
    `tokenizer`, `template`, `max_length`, `images`: what the run uses; a dataset that was packed
    with something else is refused with IdentityMismatch.
    `processor`: of a dataset that was packed with one: a folder, a hub name or an object, with
    the same settings; batches hold what its model takes (docs/how-to/vlm.md).
    `image_transform`, `expand_image_tokens`, `image_token_id`, `image_pad`, `image_layout`,
    `image_threads`: what becomes of images; see ImageStage. `fast_pixels`: with a processor,
    pixels at most two grey levels off, in less time (docs/how-to/vlm.md).
    `path` may be a URL that fsspec knows (s3://, gs://, hf://, https:// ...): shards are fetched
    ahead into a cache on this node (docs/how-to/remote.md). `storage_options` go to fsspec;
    `cache_dir`: SHARDKIT_CACHE, else ~/.cache/shardkit; `cache_limit`: bytes, shards unused for
    longest are evicted; `fetch_ahead`: shards fetched before they are needed (None: 256 MB, 2 to
    8 shards).
    `recheck="always"` compares the hash of a sample whenever it is read, not only at first: for
    shards that may be written to while they are read (docs/how-to/repair-append-merge.md).
    `loss_weights`: `token`, `sample` or `square`: batches have `loss_weights`, what each label
    weighs (docs/how-to/loss.md).
    `drop_last=True` leaves out the last samples that cannot be shared out equally;
    False adds samples whose labels are all -100 instead.

    A wrong option is a UsageError that names it, before anything is opened.
    """

    def __init__(self, path: str | Path, **options: Unpack[DatasetOptions]) -> None:
        self._begin([check("path", path, FilePath)], LoaderOptions.of(options))

    def _begin(self, paths: Sequence[str | Path], options: LoaderOptions) -> None:
        """Open the members; the options are right by themselves, and may not fit the data."""
        ranks = options.ranks
        self._world = find_world(ranks.rank, ranks.world_size, group=ranks.group)
        self._reader: Reader | None = None
        self.options = options
        self._epoch = _shared(torch.tensor(options.order.epoch))
        self._served = 0
        self._goes_on_at: int | None = None
        self.drop_last = options.order.drop_last
        self.members = tuple(
            open_expected(path, options.expected, options.access) for path in paths
        )
        first, padding = self.members[0], options.padding
        pad = first.manifest.pad_token_id if padding.pad_token_id is None else padding.pad_token_id
        self.padding = Padding(pad, padding.pad_to_multiple_of or 1, padding.loss_weights)
        self.stage: ImageStage | VisionStage = vision_stage_of(
            options.expected.processor, options.images, self.padding, self.members
        ) or stage_of(options.images, self.padding, self.members)
        self.rules = RowRules.of(first.manifest.recipe)
        if self.rules.task == PREFERENCE and options.images.image_pad != "none":
            raise UsageError(
                "image_pad has no place in rows of preferences",
                where=first.root,
                fix="Leave image_pad out.",
            )
        self.arrangement = Arrangement(
            seed=options.order.seed,
            shuffle=choose_shuffle(options.order.shuffle, self.members),
            window=options.order.window,
        )

    @property
    def world(self) -> World:
        """The data-parallel place; looked for again as long as nothing said it."""
        if not self._world.is_found:
            self._world = find_world()
        return self._world

    @property
    def is_packed(self) -> bool:
        """Whether a sample is a pack of several documents."""
        return self.rules.is_packed

    @property
    def task(self) -> str:
        """What the rows are for: `sft`, `preference` or `kto`."""
        return self.rules.task

    def arrange(self, batch_size: int, lanes: int | None) -> Arrangement:
        """The arrangement of a loader with this batch size: each rank has a lane of its own."""
        return self._arranged(lanes=self.world.size if lanes is None else lanes, chunk=batch_size)

    def n_samples_of(self, arrangement: Arrangement) -> int | None:
        """Samples of one epoch, of all ranks; None when it never ends."""
        return int(self.members[0].sizes.sum(dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        """The sha256 of what made the samples; a loader state with another one is refused."""
        return self.members[0].manifest.fingerprint

    @property
    def content(self) -> str:
        """The sha256 of what the shards hold."""
        return self.members[0].manifest.content

    @property
    def reader(self) -> Reader:
        """The reader, which remembers open shards and checked samples."""
        if self._reader is None:
            self._reader = self._new_reader()
        return self._reader

    def for_eval(self, *, drop_last: bool) -> Self:
        """A view of the data, with the same reader, for evaluation (ShardLoader.for_eval)."""
        view = copy(self)
        view.drop_last = drop_last
        view._reader = self.reader
        return view

    def _new_reader(self) -> Reader:
        access = self.options.access
        return Reader(self.members, access, access.fetch_ahead)

    def order(self, arrangement: Arrangement, epoch: int, facts: IndexFacts | None = None) -> Order:
        """The sequence of an epoch; `facts`: what orders by length or cost ask (see grouped)."""
        order = arrangement.epoch(epoch, self.members[0].sizes)
        return grouped(arrangement, order, epoch, self.members, facts)

    def check_present(self, order: Order) -> None:
        """Look that the shards that this rank reads are there, with the right size.

        Raises what Dataset.check_present raises, before anything is read.
        """
        reads_all = isinstance(order, BalancedOrder) and order.balance.scope != "lanes"
        order = order.order if isinstance(order, GroupedOrder | BalancedOrder) else order
        rank, size = self.world.rank, self.world.size
        if reads_all or not isinstance(order, EpochOrder) or order.n_lanes % size:
            shards = np.arange(len(self.members[0].sizes))
        else:
            own = [order.shards_of_lane(lane) for lane in range(rank, order.n_lanes, size)]
            shards = np.concatenate(own)
        self.members[0].check_present(shards)

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration, also in workers that live on (persistent_workers)."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; every rank must choose the same."""
        self._epoch.fill_(check("epoch", epoch, Epoch))

    def state_dict(self) -> dict[str, Any]:
        """Where this process, or DataLoader worker, is: for torchdata's StatefulDataLoader.

        Integers and strings; `n_served` is the samples that the latest iteration handed out here.
        """
        return msgspec.structs.asdict(self._share_state(self._served))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where a state was saved, at once, in the state's epoch.

        Ranks and workers must be as many as they were. Raises StateMismatch.
        """
        loaded = ShareState.from_dict(state)
        loaded.refuse_other(self._share_state(0), self.members[0].root)
        self.set_epoch(loaded.epoch)
        self._served = self._goes_on_at = loaded.n_served

    def _share_state(self, n_served: int) -> ShareState:
        info = get_worker_info()
        return ShareState(
            fingerprint=self.fingerprint,
            content=self.content,
            seed=self.arrangement.seed,
            shuffle=self.arrangement.shuffle,
            window=self.arrangement.window,
            epoch=self.epoch,
            n_shares=self.world.size * (1 if info is None else info.num_workers),
            n_served=n_served,
        )

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
        first, self._goes_on_at = self._goes_on_at or 0, None
        self._served = first
        return self._samples(first)

    def _samples(self, first: int) -> Iterator[Sample]:
        """This worker's share from the sample `first` on, or from a state loaded meanwhile."""
        refuse_second_sharing(self.world.size)
        if self._goes_on_at is not None:
            first, self._goes_on_at = self._goes_on_at, None
            self._served = first
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        arrangement = self._vanilla(n_workers)
        order = self.order(arrangement, self.epoch)
        n_samples = self.n_samples_of(arrangement)
        n = None if n_samples is None else len(self)
        if n == 0 and worker == 0:
            _warn_of_nothing(n_samples, self.world.size)
        first_step = worker + first * n_workers
        share = Share(self.world, 1, origin=0, n_steps=n, first_step=first_step, stride=n_workers)
        self.check_present(order)
        reader, stage = self.reader, self.stage
        if info is not None:  # threads and locks of the parent are not ours
            reader, stage = self._new_reader(), stage.for_worker()
        for n_served, raw in enumerate(read_batches(reader, order, share), first + 1):
            sample = self._sample(raw, stage)
            self._served = n_served
            yield sample

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """The padded batch of some samples: the `collate_fn` for a DataLoader (see make_batch)."""
        raw = raw_of(samples, self.rules)
        if isinstance(self.stage, VisionStage):
            return self.stage.batch_of(samples, raw)
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
        return BatchMaker(self.padding)(self.stage.decode(raw))[0]

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__setstate__(self.__getstate__() | {"_epoch": self._epoch.clone()})
        return made

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _shared(self._epoch)

    def __getstate__(self) -> dict[str, Any]:
        world = self.world
        refuse_second_sharing(world.size)
        return {**self.__dict__, "_world": world, "_reader": None}

    def _arranged(self, *, lanes: int, chunk: int) -> Arrangement:
        return replace(self.arrangement, lanes=lanes, chunk=chunk)

    def _vanilla(self, n_workers: int) -> Arrangement:
        """The arrangement under a plain DataLoader: a lane for each worker of each rank."""
        return self._arranged(lanes=self.world.size * n_workers, chunk=1)

    def _sample(self, raw: RawBatch, stage: ImageStage | VisionStage) -> Sample:
        if not raw.rows:
            raw.rows = [padding_row(self.padding.pad_token_id)]
            raw.documents = [np.ones(1, np.int64)] if self.is_packed else None
            if self.rules.task == PREFERENCE:
                row, documents = padding_pair(self.padding.pad_token_id)
                raw.rows, raw.documents = [row], [documents]
        stage.expand(raw)
        sample: Sample = sample_of(
            raw.rows[0], raw.documents[0] if raw.documents else None, self.rules
        )
        if self.rules.task == KTO:
            sample["label"] = bool(raw.flags is not None and raw.flags[:1].any())
        if len(raw.images) and (isinstance(stage, VisionStage) or stage.transform is None):
            sample["images"] = [bytes(image) for image in raw.images]
            if raw.image_documents is not None:
                sample["image_documents"] = torch.from_numpy(raw.image_documents)
        elif len(raw.images) and isinstance(stage, ImageStage):
            sample["pixel_values"] = [
                torch.from_numpy(pixels) for pixels in stage.pixels(raw.images, raw.where_image)
            ]
        return sample


def _warn_of_nothing(n_samples: int | None, n_ranks: int) -> None:
    """Say that an epoch has no sample for a rank: a loop over it would pass for a done one."""
    advice = "drop_last=False would pad"
    if not n_samples:
        advice = (
            "under a DataLoader a mixture goes in blocks of 256: use ShardLoader, or until='all'"
        )
    warnings.warn(
        f"the epoch is empty: it has {n_samples} samples for {n_ranks} ranks ({advice})",
        stacklevel=3,
    )


def _shared(value: torch.Tensor) -> torch.Tensor:
    """The tensor in memory that worker processes see too; itself when it is there already."""
    return value.share_memory_()  # type: ignore[no-untyped-call,no-any-return]


def choose_shuffle(shuffle: bool | Shuffle, members: Sequence[Dataset]) -> Shuffle:
    """The shuffle that the option means for these datasets."""
    if shuffle is True:
        return default_shuffle(members)
    return shuffle or "none"
