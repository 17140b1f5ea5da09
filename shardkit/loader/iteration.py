"""The rest of one epoch, batch by batch; where the loader stands, whoever iterates over it."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from shardkit.errors import ShardkitError
from shardkit.loader.collate import Batch
from shardkit.loader.stats import Health, StepStats, Timings

Made = tuple[Batch, Timings | None]
"""A batch, and what making it took when that is wanted."""


@dataclass(slots=True)
class Progress:
    """Where an iteration is: its next global batch begins at this position of this epoch."""

    epoch: int
    position: int
    generation: int = 0
    """How often the standing had been put elsewhere when the iteration began."""
    born: int = 0
    """The number of the iteration's begin among all events of the standing."""
    turn: int = 0
    """The number of its latest batch among all events of the standing; 0: no batch yet."""
    begun_at: int = 0
    """The position of the first batch of the iteration."""
    n_batches: int = 0
    """Batches that the iteration handed out."""

    def go_to_next_epoch(self) -> None:
        """Stand at the start of the next epoch."""
        self.epoch, self.position = self.epoch + 1, 0


class Standing:
    """Where a loader stands: where its next iteration begins, and where its run is.

    The run is where that iteration is which handed out the latest batch. One that is dropped, or
    ends, while an older one is under way in the same epoch leaves no trace (a peek, a loop inside
    a loop); the place of the oldest stays when it is dropped (a `break` is a stop), and its end is
    the start of the next epoch. One that handed out its last batch is under way until it is asked
    for another, or dropped: its last step may be.

    `is_fixed`: every iteration begins at the same place, for evaluation.
    """

    def __init__(self, start: Progress, *, is_fixed: bool = False) -> None:
        self._start = start
        self._kept = start
        self._is_fixed = is_fixed
        self._generation = 0
        self._now = 0
        self._live: dict[int, Progress] = {}
        self._in_last_step: dict[int, Progress] = {}
        """Iterations that handed out their last batch, and were not asked for another."""
        self._served: Progress | None = None
        self._broken_off: Progress | None = None
        """The latest iteration that handed out several batches and was left before its end."""

    @property
    def start(self) -> Progress:
        """Where the next iteration begins."""
        return replace(self._start)

    @property
    def place(self) -> Progress:
        """Where the run is."""
        return replace(max([self._kept, *self._live.values()], key=lambda one: one.turn))

    @property
    def served(self) -> Progress | None:
        """The iteration that handed out the latest batch, with the position behind that batch.

        An iteration that is dropped inside another does not count; None: there was no batch.
        """
        return self._served

    def put(self, start: Progress) -> None:
        """Stand at `start`. Iterations that are under way leave no trace any more."""
        self._start = self._kept = replace(start, turn=self._tick())
        self._live.clear()
        self._in_last_step.clear()
        self._served = self._broken_off = None
        self._generation += 1

    def begin(self) -> Progress:
        """The place of an iteration that begins now."""
        start = self._start
        self._tell_of_repetition(start)
        return replace(
            start,
            generation=self._generation,
            born=self._tick(),
            turn=0,
            begun_at=start.position,
            n_batches=0,
        )

    def handed_out(self, progress: Progress, n: int, *, is_last: bool) -> bool:
        """Note that an iteration handed out a batch of n positions; False when `put` came since."""
        progress.position += n
        progress.n_batches += 1
        if progress.generation != self._generation:
            return False
        progress.turn = self._tick()
        self._live[id(progress)] = self._served = progress
        if is_last:
            self.end(progress)
        return True

    def end(self, progress: Progress) -> None:
        """Note that an iteration is at the end of its epoch."""
        self._live.pop(id(progress), None)
        if progress.generation != self._generation:
            return
        if self._is_inside_another(progress) or self._is_inside_last_step(progress):
            if not self._is_fixed:
                self._tell_of_held(progress)
            return
        if not self._is_fixed and progress.epoch >= self._start.epoch:
            self._start = Progress(progress.epoch + 1, 0)
            self._in_last_step[id(progress)] = progress
        self._kept = replace(self._start, turn=progress.turn or self._tick())

    def leave(self, progress: Progress) -> None:
        """Note that an iteration was asked for more than it has, or that nobody has it any more."""
        was_live = self._live.pop(id(progress), None) is not None
        self._in_last_step.pop(id(progress), None)
        is_inside = self._is_inside_another(progress) or self._is_inside_last_step(progress)
        is_past = progress.epoch < self._start.epoch  # an older one ended this epoch meanwhile
        if was_live and not is_inside and not is_past:
            self._kept = progress
            if progress.n_batches > 1 and not self._is_fixed:
                self._broken_off = progress
        under_way = [*self._live.values(), *self._in_last_step.values()]
        if self._served is progress and under_way:
            self._served = max(under_way, key=lambda one: one.turn)

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def _tell_of_repetition(self, start: Progress) -> None:
        """Warn, once, that batches come again which an iteration handed out that was left."""
        left, self._broken_off = self._broken_off, None
        if left is None or (left.epoch, left.begun_at) != (start.epoch, start.position):
            return
        warnings.warn(
            f"the {left.n_batches} batches come again that were handed out of epoch {left.epoch} "
            "before the loop over it was left: set_epoch() chooses another epoch, and "
            "loader.load_state_dict(loader.state_dict()) before the next loop goes on behind them",
            stacklevel=5,
        )

    def _tell_of_held(self, progress: Progress) -> None:
        """Warn of a whole pass that is taken for one inside another's loop."""
        warnings.warn(
            f"a whole pass over epoch {progress.epoch} ended while an older iterator of the loader "
            "is held, which handed out batches: it is taken for a pass inside that one's loop, "
            "and the loader does not move on. Use loader.for_eval() for such a pass; let go of an "
            "iterator that was for a look alone (del it)",
            stacklevel=5,
        )

    def _is_inside_another(self, progress: Progress) -> bool:
        return any(
            one.born < progress.born and one.epoch >= progress.epoch
            for one in [*self._live.values()]
        )

    def _is_inside_last_step(self, progress: Progress) -> bool:
        return progress.epoch in [one.epoch + 1 for one in [*self._in_last_step.values()]]

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_kept": self.place,
            "_live": {},
            "_in_last_step": {},
            "_served": None,
        }


Start = Callable[[Progress], tuple[Iterator[Made], int | None]]
"""From a place to the batches from there to the end of its epoch, and their number (None: no end).
"""


class Iteration(Iterator[Batch]):
    """The batches of a loader, from where it stands when the first one is asked for."""

    def __init__(self, start: Start, standing: Standing, *, per_step: int, health: Health) -> None:
        self._make = start
        self._standing = standing
        self._per_step = per_step
        self._health = health
        self._batches: Iterator[Made] | None = None
        self._n_left: int | None = None
        self._progress = standing.start
        self._begins = threading.Lock()
        self._was_told = False
        self._handed_out_at = time.perf_counter()
        self._is_first = True

    def __next__(self) -> Batch:
        asked_at = time.perf_counter()
        try:
            batch, timings = next(self._begun() if self._batches is None else self._batches)
        except StopIteration:
            self._standing.leave(self._progress)
            if self._n_left:
                raise _ended_early(self._n_left) from None
            raise
        if timings is not None:
            self._note(timings, asked_at)
        if self._n_left is not None:
            self._n_left -= 1
        is_last = self._n_left == 0
        if not self._standing.handed_out(self._progress, self._per_step, is_last=is_last):
            self._tell_overtaken()
        return batch

    def _begun(self) -> Iterator[Made]:
        with self._begins:
            if self._batches is None:
                self._progress = self._standing.begin()
                self._batches, self._n_left = self._make(self._progress)
                dropped = weakref.finalize(self, self._standing.leave, self._progress)
                dropped.atexit = False
                if self._n_left == 0:
                    self._standing.end(self._progress)
            return self._batches

    def _tell_overtaken(self) -> None:
        if not self._was_told:
            self._was_told = True
            warnings.warn(
                "an iteration goes on that began before load_state_dict, set_epoch or skip: its "
                "batches are of the old place and do not count in the loader's state",
                stacklevel=3,
            )

    def _note(self, timings: Timings, asked_at: float) -> None:
        now = time.perf_counter()
        step = StepStats(
            epoch=self._progress.epoch,
            position=self._progress.position,
            wait_s=now - asked_at,
            work_s=asked_at - self._handed_out_at,
            timings=timings,
            is_first=self._is_first,
        )
        self._handed_out_at = now
        self._is_first = False
        self._health.add(step)


def _ended_early(n_left: int) -> ShardkitError:
    """The error for batches that stop early, which would pass for the end of the epoch."""
    return ShardkitError(
        "the batches ended before the epoch did",
        expected=f"{n_left} more steps",
        found="StopIteration: raised by image_transform, or after an error before it",
        fix="Mend what raised; a new iteration, or the loader's state, goes on behind the last "
        "batch that was handed out.",
    )


class Pinned:
    """A function that puts the tensors of a made batch into page-locked memory; lists stay.

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
