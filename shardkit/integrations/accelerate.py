"""Accelerate: a loop over a ShardLoader whose end accelerate sees.

`accelerator.prepare` leaves a ShardLoader alone, as it must. But `accumulate()` then never hears
that an epoch ends, and sums up batches of two epochs in one step; and `gather_for_metrics()`
takes the rows that fill the last batch for real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import DataLoaderStateMixin
from accelerate.state import GradientState

from shardkit.loader import ShardLoader
from shardkit.loader.collate import Batch


class AccelerateLoader(DataLoaderStateMixin):  # type: ignore[misc]
    """The batches of a ShardLoader, for `accumulate()` and `gather_for_metrics()`.

    A group of accumulated batches ends with the epoch, as it does for `loader.ends_step()`, and
    what is gathered of the last batch loses the rows that fill it (`drop_last=False`,
    `for_eval()`). Make it in place of `accelerator.prepare`;
    `accelerator.register_for_checkpointing` keeps its state, which is the loader's.
    """

    _drop_last = True
    """True, so that the base class does not count the rows of the last batch: `__iter__` does."""

    def __init__(self, loader: ShardLoader) -> None:
        self.loader = loader
        self.gradient_state = GradientState()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        n_left, n_samples = self.loader.n_remaining, self.loader.n_remaining_samples
        self.begin()
        if n_samples is not None and not self.loader.dataset.drop_last:
            self.remainder = n_samples % self.loader.global_batch_size
        try:
            for batch in self.loader:
                n_left = None if n_left is None else n_left - 1
                self.end_of_dataloader = n_left == 0
                yield batch
        finally:
            self.end()

    def set_epoch(self, epoch: int) -> None:
        """Stand at the start of an epoch; see ShardLoader.set_epoch."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; see ShardLoader.state_dict."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a run was; see ShardLoader.load_state_dict."""
        self.loader.load_state_dict(state)
