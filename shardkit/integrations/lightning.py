"""Lightning: a data module whose loaders reach the model untouched and go on exactly.

Lightning leaves alone what is not a torch DataLoader, so a ShardLoader is neither sampled again
nor dealt out. What it lacks is the state: on its own it restores a loader's only in mid-epoch,
and a run that goes on after a whole epoch would see the first epoch's order again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule

from shardkit.errors import UsageError
from shardkit.loader import ShardLoader
from shardkit.loader.collate import Batch
from shardkit.loader.model_inputs import with_borders


class ShardDataModule(LightningDataModule):
    """The batches of ShardLoader objects for `Trainer.fit`, `validate`, `test` and `predict`.

    Each loader has the rank's own batch size; it finds its rank when Lightning has started the
    process group. A packed batch also has `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and
    `max_length_k`, as FlashAttention models take them. Checkpoints hold the state of `train`: a
    resumed run continues with the next batch, on any number of ranks, and replays nothing. With
    `limit_train_batches` the next Lightning epoch goes on where the last one was left; with
    `overfit_batches` it begins with the same batches again. Raises UsageError when a loader shards
    for another number of ranks than the Trainer runs.
    """

    def __init__(
        self,
        train: ShardLoader | None = None,
        *,
        val: ShardLoader | None = None,
        test: ShardLoader | None = None,
        predict: ShardLoader | None = None,
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.test = test
        self.predict = predict
        self._repeated: Repeated | None = None

    def setup(self, stage: str) -> None:
        """Called by Lightning on every rank, when the process group is there."""
        strategy = self.trainer.strategy  # type: ignore[union-attr]
        place = getattr(strategy, "distributed_sampler_kwargs", None)
        place = place or {"rank": 0, "num_replicas": 1}
        expected = (place["rank"], place["num_replicas"])
        for loader in (self.train, self.val, self.test, self.predict):
            if loader is not None:
                _check_world(loader, expected)

    def train_dataloader(self) -> Any:
        """The training batches from where the loader stands."""
        loader = _given(self.train, "train")
        if not getattr(self.trainer, "overfit_batches", 0):
            return Continued(loader)
        self._repeated = self._repeated or Repeated(loader)
        return self._repeated

    def val_dataloader(self) -> Any:
        """The validation batches; none when there is no such loader."""
        return [] if self.val is None else _evaluated(self.val)

    def test_dataloader(self) -> Any:
        """The test batches; raises UsageError when there is no such loader."""
        return _evaluated(_given(self.test, "test"))

    def predict_dataloader(self) -> Any:
        """The batches to predict; raises UsageError when there is no such loader."""
        return _evaluated(_given(self.predict, "predict"))

    def state_dict(self) -> dict[str, Any]:
        """The training loader's state for the checkpoint, the same on every rank."""
        if self.train is None:
            return {}
        repeated = self._repeated
        return {"train": self.train.state_dict() if repeated is None else repeated.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the training loader where the checkpoint has it, before the first batch."""
        if self.train is not None and "train" in state_dict:
            self.train.load_state_dict(state_dict["train"])


class Batches:
    """A loader as Lightning wants it: batches and a length."""

    def __init__(self, loader: ShardLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Steps of an epoch; of an endless mixture more than will ever be made.

        (Without a length Lightning takes a batch ahead, and the state would count it.)
        """
        try:
            return len(self.loader)
        except TypeError:
            return sys.maxsize

    def __iter__(self) -> Iterator[Batch]:
        return map(with_borders, self.loader)


class Repeated(Batches):
    """Batches that begin at the same place in every pass, for `overfit_batches` and for a part of
    an endless mixture."""

    def __init__(self, loader: ShardLoader) -> None:
        super().__init__(loader)
        self.start = loader.state_dict()

    def __iter__(self) -> Iterator[Batch]:
        self.loader.load_state_dict(self.start)
        return super().__iter__()


class Continued(Batches):
    """Batches for training: an iteration goes on where the one before was left.

    It never ends by itself: Lightning counts to the length. So what is left of an epoch, after
    `limit_train_batches` or a change of the global batch size, comes first in the next one.
    The state is here too because Lightning warns of loaders without one.
    """

    def __iter__(self) -> Iterator[Batch]:
        self.loader.load_state_dict(self.loader.state_dict())
        while len(self):
            yield from map(with_borders, self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; see ShardLoader.state_dict."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a run was; see ShardLoader.load_state_dict."""
        self.loader.load_state_dict(state)


def _evaluated(loader: ShardLoader) -> Batches:
    """A pass that leaves the loader as it is; the first batches of one that never ends."""
    if loader.dataset.n_samples_of(loader.arrangement) is None:
        return Repeated(loader)
    return Batches(loader.for_eval(drop_last=loader.dataset.drop_last))


def _given(loader: ShardLoader | None, name: str) -> ShardLoader:
    if loader is None:
        raise UsageError(
            f"the data module has no {name} loader",
            fix=f"Give ShardDataModule({name}=ShardLoader(...)).",
        )
    return loader


def _check_world(loader: ShardLoader, expected: tuple[int, int]) -> None:
    world = loader.dataset.world
    if (world.rank, world.size) != expected:
        raise UsageError(
            "the loader shards for another place than Lightning has",
            expected=f"rank {expected[0]} of {expected[1]}",
            found=f"rank {world.rank} of {world.size}",
            fix="Leave rank= and world_size= out, or give the strategy's.",
        )
