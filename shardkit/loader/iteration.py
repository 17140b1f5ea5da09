"""The rest of one epoch, batch by batch, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from shardkit.loader.collate import Batch
from shardkit.loader.stats import Health, StepStats, Timings

Made = tuple[Batch, Timings | None]
"""A batch, and what making it took when that is wanted."""


@dataclass(slots=True)
class Progress:
    """Where a run is: its next global batch begins at this position of this epoch."""

    epoch: int
    position: int

    def go_to_next_epoch(self) -> None:
        """Stand at the start of the next epoch."""
        self.epoch, self.position = self.epoch + 1, 0


class Iteration(Iterator[Batch]):
    """`n` batches (None: without end). Moves `place` at every batch that is handed out.

    After the last one `place` is at the start of the next epoch, and `ended` is told.
    """

    def __init__(
        self,
        batches: Iterator[Made],
        n: int | None,
        place: Progress,
        *,
        per_step: int,
        ended: Callable[[Progress], None],
        health: Health,
    ) -> None:
        self._batches = batches
        self._n_left = n
        self._place = place
        self._per_step = per_step
        self._ended = ended
        self._health = health
        self._handed_out_at = time.perf_counter()
        self._is_first = True

    def __next__(self) -> Batch:
        asked_at = time.perf_counter()
        batch, timings = next(self._batches)
        if timings is not None:
            self._note(timings, asked_at)
        if self._n_left is not None:
            self._n_left -= 1
        if self._n_left == 0:
            self._place.go_to_next_epoch()
            self._ended(self._place)
        else:
            self._place.position += self._per_step
        return batch

    def _note(self, timings: Timings, asked_at: float) -> None:
        now = time.perf_counter()
        step = StepStats(
            epoch=self._place.epoch,
            position=self._place.position,
            wait_s=now - asked_at,
            work_s=asked_at - self._handed_out_at,
            timings=timings,
            is_first=self._is_first,
        )
        self._handed_out_at = now
        self._is_first = False
        self._health.add(step)


class Pinned:
    """Called with a batch: it, with its tensors in page-locked memory.

    A thread starts on the first GPU, whatever its process uses, so it is told which one that is.
    """

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()

    def __call__(self, made: Made) -> Made:
        batch, timings = made
        with torch.cuda.device(self._device):
            in_place = {
                name: value.pin_memory() if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
        return in_place, timings
