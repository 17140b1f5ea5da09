"""A batch from one process to another: one buffer of tokens, and one of pixels, not many tensors.

Handing a tensor over costs 0.7 to 1 ms of CPU, a few kilobytes of bytes next to nothing; so the
tokens of all rows go as int32 in one bytes object, and are padded where they arrive.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from multiprocessing.reduction import ForkingPickler
from traceback import format_exception
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardkit.dataset import Dataset
from shardkit.errors import ShardkitError
from shardkit.loader.batches import Share, read_batches
from shardkit.loader.collate import RawBatch
from shardkit.loader.images import ImageStage
from shardkit.loader.options import Streaming
from shardkit.loader.reader import Reader
from shardkit.loader.vision import VisionStage
from shardkit.order.by_length import Order


@dataclass(slots=True)
class Message:
    """A RawBatch whose arrays are few and flat."""

    tokens: bytes
    """int32: the rows of each sample, one sample after the other."""
    sizes: list[int]
    """Numbers of each sample in `tokens`."""
    pixels: torch.Tensor | None
    """Pixels of one shape, which go through shared memory; None: they are in `rest`."""
    rest: RawBatch
    """Everything else: its rows are empty, and its pixel_values where `pixels` are given."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in a worker, handed over as a value so that its fields arrive."""

    error: Exception


def failure_of(error: Exception) -> Failure:
    """An error as it can be handed over, with where it was raised when it is not ours.

    One that cannot be pickled, or not made again, would be lost on the way, and the batches
    behind it with it: what it says goes in its place, as a RuntimeError.
    """
    if not isinstance(error, ShardkitError):
        error.add_note("".join(["in a worker process:\n", *format_exception(error)]))
    try:
        pickle.loads(ForkingPickler.dumps(error))
    except Exception:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        return Failure(told)
    return Failure(error)


def to_message(raw: RawBatch) -> Message:
    """The batch as it is handed over."""
    pixels = raw.pixel_values
    stacked = isinstance(pixels, np.ndarray)
    return Message(
        tokens=b"".join(raw.rows),
        sizes=[len(row) for row in raw.rows],
        pixels=torch.from_numpy(pixels) if stacked else None,
        rest=replace(
            raw,
            rows=(),
            where=None,
            images=[bytes(image) for image in raw.images],
            pixel_values=None if stacked else pixels,
        ),
    )


def from_message(message: Message) -> RawBatch:
    """The batch of a message; its rows are views into the message's tokens."""
    flat = memoryview(message.tokens).cast("i")
    borders = [0, *accumulate(message.sizes)]
    rows = [flat[begin:end] for begin, end in pairwise(borders)]
    pixels = message.rest.pixel_values if message.pixels is None else message.pixels.numpy()
    return replace(message.rest, rows=rows, pixel_values=pixels)


@dataclass
class WorkerBatches(IterableDataset[Message | Failure]):
    """The batches of one rank, worker w of W making every W-th from the w-th on."""

    members: tuple[Dataset, ...]
    access: Streaming
    order: Order
    share: Share
    stage: ImageStage | VisionStage
    options: dict[str, Any]
    """Keyword arguments of read_batches."""

    def __iter__(self) -> Iterator[Message | Failure]:
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        share = replace(self.share, first_step=worker, stride=n_workers)
        try:
            reader, stage = (
                Reader(self.members, self.access, self.access.fetch_ahead),
                self.stage.for_worker(),
            )
            for raw in read_batches(reader, self.order, share, **self.options):
                yield to_message(stage(raw))
        except Exception as error:  # handed over, and raised by the loader
            yield failure_of(error)


def batches_of_workers(
    batches: WorkerBatches, n_workers: int, *, prefetch: int, context: Any
) -> Iterator[RawBatch]:
    """The batches in order, made by `n_workers` processes, which start now.

    Raises what a worker raised; RuntimeError when one died.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=n_workers,
        collate_fn=_same,
        prefetch_factor=max(2, -(-prefetch // n_workers)),
        multiprocessing_context=context,
        generator=torch.Generator(),  # its own: torch's global one seeds the model's dropout
    )
    return _received(iter(loader), batches.members)


def _received(
    messages: Iterator[Message | Failure], members: Sequence[Dataset]
) -> Iterator[RawBatch]:
    try:
        for message in messages:
            if isinstance(message, Failure):
                raise message.error
            yield from_message(message)
    except RuntimeError:  # torch's, for a worker that died: of a shard cut under it, for one
        for member in members:
            member.check_present(np.arange(len(member.sizes)))
        raise


def _same(message: Any) -> Any:
    return message
