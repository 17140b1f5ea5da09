"""Transformers' Trainer over an already sharded loader, which accelerate must not touch.

By default accelerate reads every batch on rank 0 and deals it out, so the other ranks' shards are
never trained on; with `dispatch_batches=False` each rank drops half of its own. Both happen
without a warning. The mixin hands the loader to the training loop as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from shardkit.errors import UsageError
from shardkit.loader import ShardLoader

STATE_FILE = "shardkit_loader.json"
_FIX = (
    "Pass ShardLoader objects as train_dataset and eval_dataset of a class that derives from "
    "ShardTrainerMixin and Trainer, in this order."
)


class ModelBatches:
    """A ShardLoader as the training loop wants it: only what the model takes, and a length."""

    def __init__(self, loader: ShardLoader, seen: list[list[str]] | None = None) -> None:
        self.loader = loader
        self.dataset = loader.dataset
        self.batch_size = loader.batch_size
        self.seen = seen

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader:
            if self.seen is not None:
                self.seen.append(batch["keys"])
            yield {
                name: value
                for name, value in batch.items()
                if isinstance(value, torch.Tensor) and name not in _NOT_FOR_MODELS
            }

    def set_epoch(self, epoch: int) -> None:
        """Stand at the start of an epoch, unless the loader stands in it already."""
        self.loader.set_epoch(epoch)


_NOT_FOR_MODELS = {"image_rows", "cu_seqlens"}
"""What a batch holds for the script rather than for a transformers model."""


class SaveLoader(TrainerCallback):
    """Writes the loader's state into every checkpoint, as shardkit_loader.json."""

    def __init__(self, loader: ShardLoader) -> None:
        self._loader = loader

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Called by Trainer on every rank; the state is the same on all, rank 0 writes it."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps(self._loader.state_dict()))


class ShardTrainerMixin:
    """Put it before Trainer: `class MyTrainer(ShardTrainerMixin, Trainer)`.

    `train_dataset` and `eval_dataset` are ShardLoader objects, with the rank's own batch size.
    Checkpoints hold the loader's state; a resumed run continues with the next batch, on any
    number of ranks, and replays nothing. Raises UsageError for anything that accelerate would
    shard, or deal out, again.
    """

    train_dataset: Any
    eval_dataset: Any
    args: Any
    keep_keys: bool = False
    """Keep the sample keys of every training batch in `seen_keys` (ShardLoader sample_keys)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen_keys: list[list[str]] = []
        loader = _checked(self.train_dataset, "train_dataset")
        _checked(self.eval_dataset, "eval_dataset")
        if loader is not None:
            _check_sizes(loader, self.args)
            self.args.ignore_data_skip = True
            self.add_callback(SaveLoader(loader))  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> Any:
        """The loader, untouched by accelerate."""
        return ModelBatches(self.train_dataset, self.seen_keys if self.keep_keys else None)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader, untouched by accelerate."""
        loader = _checked(self.eval_dataset if eval_dataset is None else eval_dataset, "eval")
        if loader is None:
            raise UsageError("there is no eval_dataset", fix=_FIX)
        return ModelBatches(loader)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train; the loader continues from the checkpoint's state."""
        if resume_from_checkpoint is True:
            from transformers.trainer_utils import get_last_checkpoint

            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint) / STATE_FILE
            if not path.is_file():
                raise UsageError(
                    "the checkpoint holds no loader state",
                    where=str(path),
                    fix="Resume from a checkpoint that a ShardTrainerMixin wrote.",
                )
            self.train_dataset.load_state_dict(json.loads(path.read_text()))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]


def _checked(dataset: Any, name: str) -> ShardLoader | None:
    if dataset is None or isinstance(dataset, ShardLoader):
        return dataset
    raise UsageError(
        f"{name} would be sharded a second time",
        expected="a ShardLoader",
        found=type(dataset).__name__,
        fix=_FIX,
    )


def _check_sizes(loader: ShardLoader, args: Any) -> None:
    if args.per_device_train_batch_size != loader.batch_size:
        raise UsageError(
            "two batch sizes",
            expected=f"per_device_train_batch_size={loader.batch_size}, as the ShardLoader has",
            found=str(args.per_device_train_batch_size),
            fix="Give both the same number.",
        )
    if args.world_size != loader.dataset.world.size:
        raise UsageError(
            "the loader shards for another number of ranks than Trainer runs",
            expected=str(args.world_size),
            found=str(loader.dataset.world.size),
            fix="Make TrainingArguments first, or pass rank= and world_size= to ShardLoader.",
        )
