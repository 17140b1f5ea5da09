"""Transformers' Trainer over an already sharded loader, which accelerate must not touch.

By default accelerate reads every batch on rank 0 and deals it out, so the other ranks' shards are
never trained on; with `dispatch_batches=False` each rank drops half of its own. Both happen
without a warning. The mixin hands the loader to the training loop as it is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from shardkit.errors import UsageError
from shardkit.format.atomic import appear
from shardkit.format.recipe import SFT
from shardkit.integrations.evaluation import EvalBatch, EvalBatches, Sized, padded_rows
from shardkit.loader import ShardLoader
from shardkit.loader.collate import Batch
from shardkit.loader.model_inputs import model_inputs

STATE_FILE = "shardkit_loader.json"
_TRAINER_STATE = "trainer_state.json"
_FIX = (
    "Pass ShardLoader objects as train_dataset and eval_dataset of a class that derives from "
    "ShardTrainerMixin and Trainer, in this order."
)
_WITHOUT_EFFECT = (
    "auto_find_batch_size",
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "dataloader_drop_last",
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "data_seed",
    "group_by_length",
    "train_sampling_strategy",
    "split_batches",
    "ignore_data_skip",
)
"""Arguments of TrainingArguments that say what a ShardLoader says itself."""


class TrainBatches:
    """A ShardLoader as the training loop wants it: only what the model takes, and a length."""

    def __init__(
        self,
        loader: ShardLoader,
        model_inputs: Callable[[Batch], Batch],
        seen: list[list[str]] | None = None,
    ) -> None:
        self.loader = loader
        self.dataset = Sized(loader)
        self.batch_size = loader.batch_size
        self.latest: dict[str, Any] | None = None
        """The inputs of the model that were handed out last; None: there were none."""
        self._model_inputs = model_inputs
        self._seen = seen

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            if self._seen is not None:
                self._seen.append(batch["keys"])
            self.latest = self._model_inputs(batch)
            yield self.latest

    def set_epoch(self, epoch: int) -> None:
        """Stand at the start of an epoch, unless the loader stands in it already."""
        self.loader.set_epoch(epoch)


class SaveLoader(TrainerCallback):
    """Writes the loader's state into every checkpoint, as shardkit_loader.json."""

    def __init__(self, loader: ShardLoader) -> None:
        self._loader = loader

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Called by Trainer on every rank; the state is the same on all.

        Rank 0 writes it; with `save_on_each_node` the first rank of every node.
        """
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with appear(folder / STATE_FILE) as file:
                file.write(json.dumps(self._loader.state_dict()).encode())


class ShardTrainerMixin:
    """Put it before Trainer: `class MyTrainer(ShardTrainerMixin, Trainer)`.

    `train_dataset` and `eval_dataset` are ShardLoader objects (or a dict of them by name, for
    evaluation), with the rank's own batch size. Checkpoints hold the loader's state; a resumed run
    makes the optimizer steps, accumulation groups and epochs of the uncut one and replays nothing,
    on any number of ranks with the same global batch size. Evaluation and prediction are passes of
    their own over every row, whatever `drop_last` says, and count real rows only.

    Raises UsageError for anything that accelerate would shard, or deal out, again, and for a
    checkpoint that cannot be continued exactly. Warns of training arguments without effect.
    """

    train_dataset: Any
    eval_dataset: Any
    args: Any
    model: Any
    _is_shared_loss = False
    task: str = SFT
    """The task that the loaders' rows must have: `sft`, `preference` or `kto`."""
    _training: TrainBatches | None = None
    keep_keys: bool = False
    """Keep the sample keys of every training batch in `seen_keys` (ShardLoader sample_keys)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen_keys: list[list[str]] = []
        loader = check_loader(self.train_dataset, "train_dataset", self.task)
        _check_each(self.eval_dataset, "eval_dataset", self.task)
        _warn_of_unused(self.args, _sizes_of(self.eval_dataset))
        if loader is not None:
            _check_sizes(loader, self.args)
            if self.keep_keys and not loader.sample_keys:
                raise UsageError(
                    "keep_keys needs the keys of the samples",
                    fix="Make the training loader with ShardLoader(..., sample_keys=True).",
                )
            self.args.ignore_data_skip = False
            self.add_callback(SaveLoader(loader))  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> Any:
        """The loader, untouched by accelerate."""
        me: Any = self
        if me.get_sp_size() > 1 and self.train_dataset.dataset.is_packed:
            raise UsageError(
                "Trainer's sequence parallelism has no place for the borders of packed rows",
                where=self.train_dataset.dataset.members[0].root,
                fix="Train on unpacked rows, or in a loop of your own with SequenceRows "
                "(docs/how-to/parallelism.md).",
            )
        seen = self.seen_keys if self.keep_keys else None
        self._training = TrainBatches(self.train_dataset, self.model_inputs, seen)
        return self._training

    def model_inputs(self, batch: Batch) -> Batch:
        """What the model is called with, of a batch of the loader."""
        return model_inputs(batch, self.model)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """A pass over all rows of the loader, untouched by accelerate; UsageError without one.

        `eval_dataset`: a ShardLoader, or the name of one in a dict of evaluation sets.
        """
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        loader = check_loader(chosen, "eval_dataset", self.task)
        if loader is None:
            raise UsageError("there is no eval_dataset", fix=_FIX)
        return EvalBatches(loader, self.model_inputs)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The batches that `predict` goes through: a pass over all rows of the loader."""
        loader = check_loader(test_dataset, "test_dataset", self.task)
        if loader is None:
            raise UsageError("there is no test_dataset", fix=_FIX)
        return EvalBatches(loader, self.model_inputs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, with the loader's batch size: losses are weighed by it."""
        wanted = self.args.per_device_eval_batch_size
        self.args.per_device_eval_batch_size = dataloader.batch_size
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.args.per_device_eval_batch_size = wanted

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, of the real rows. Predictions are filled up again: ranks gather them."""
        inputs = inputs.real if isinstance(inputs, EvalBatch) else inputs
        batch_size = self.args.per_device_eval_batch_size
        self._is_shared_loss = False
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if self._is_shared_loss and loss is not None:
            loss = self.accelerator.gather(loss.reshape(1)).mean()  # type: ignore[attr-defined]
        return loss, padded_rows(logits, batch_size, 0), padded_rows(labels, batch_size, -100)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """The labels of the optimizer step on all ranks: from the indexes, where they are local.

        Else Trainer's own count, which the ranks gather. Notes whether a loss is each rank's share
        of the sum over all ranks, as it is when the count is of all ranks: then the loss of a step
        is the mean of the ranks'.
        """
        if self._counts_by_index(batch_samples):
            n = self._training.loader.num_items_in_batch(  # type: ignore[union-attr]
                accumulation=self.args.gradient_accumulation_steps
            )
            return torch.tensor(n, device=device)
        count = super()._get_num_items_in_batch(batch_samples, device)  # type: ignore[misc]
        is_counted = count is not None and self.args.world_size > 1
        self._is_shared_loss = is_counted and self.args.average_tokens_across_devices
        return count

    def _counts_by_index(self, batch_samples: list[Any]) -> bool:
        """Whether these are training batches whose count the indexes say at no cost."""
        training, args = self._training, self.args
        if self.task != SFT:
            return False  # losses of preferences are means over rows
        if training is None or not batch_samples or batch_samples[-1] is not training.latest:
            return False
        me: Any = self
        takes = me.model_accepts_loss_kwargs or me.compute_loss_func is not None
        is_shared = args.average_tokens_across_devices or args.world_size == 1
        is_plain = args.n_gpu <= 1 and me.get_tp_size() * me.get_cp_size() * me.get_sp_size() == 1
        is_local = all(member.is_local for member in training.loader.dataset.members)
        return bool(takes and is_shared and is_plain and is_local)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train; the loader continues from the checkpoint's state.

        Raises UsageError for a checkpoint without one, and for one that this run (another global
        batch size, another accumulation) would not continue where it was left.
        """
        if self.train_dataset is None:
            raise UsageError("there is no train_dataset", fix=_FIX)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = _last_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            self._load_loader(Path(resume_from_checkpoint))
        elif self.train_dataset.state_dict()["position"]:
            raise UsageError(
                "the training loader stands inside an epoch, and Trainer counts whole ones",
                fix="Resume with train(resume_from_checkpoint=...), or begin an epoch: "
                "loader.set_epoch(loader.epoch + 1).",
            )
        with _free_skips():
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _load_loader(self, checkpoint: Path) -> None:
        """Put the loader where the checkpoint's run was; it must be where Trainer goes on."""
        path = checkpoint / STATE_FILE
        if not path.is_file():
            raise UsageError(
                "the checkpoint holds no loader state",
                where=str(path),
                fix="Resume from a checkpoint that a ShardTrainerMixin wrote (with one disk a "
                "node, save_on_each_node=True writes it on each).",
            )
        state = _read(path)
        steps = _read(checkpoint / _TRAINER_STATE)["global_step"]
        loader = self.train_dataset
        expected = _place_of(steps, loader, self.args.gradient_accumulation_steps)
        found = (state.get("epoch"), state.get("position"))
        if found != expected:
            raise UsageError(
                f"step {steps} of this run is not where the checkpoint's run was: Trainer counts "
                "epochs in steps, so rows would be left out or seen again",
                where=str(path),
                expected=f"epoch {expected[0]}, {expected[1]} rows served (global batch "
                f"{loader.global_batch_size} x {self.args.gradient_accumulation_steps})",
                found=f"epoch {found[0]}, {found[1]} rows served (global batch "
                f"{state.get('global_batch')})",
                fix="Resume with the same ranks x batch size and gradient_accumulation_steps, or "
                "train from the checkpoint's weights without resume_from_checkpoint.",
            )
        loader.load_state_dict(state)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
        problem = f"a {type(found).__name__}"
    except (OSError, ValueError) as err:
        problem = str(err)
    raise UsageError(
        "the file of this checkpoint cannot be read",
        where=str(path),
        expected="a JSON object",
        found=problem,
        fix="Resume from the checkpoint before it: a run was ended while it was written.",
    )


def _place_of(steps: int, loader: ShardLoader, accumulation: int) -> tuple[int, int]:
    """The epoch and the rows of it that were served after so many optimizer steps of Trainer."""
    rows = accumulation * loader.global_batch_size
    try:
        n_batches = len(loader)
    except TypeError:  # an endless mixture
        return 0, steps * rows
    epoch, step = divmod(steps, max(1, -(-n_batches // accumulation)))
    return epoch, step * rows


def _last_checkpoint(folder: str) -> str:
    from transformers.trainer_utils import get_last_checkpoint

    found: str | None = None
    if Path(folder).is_dir():
        found = get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
    if found is None:
        raise UsageError(
            "there is no checkpoint to resume from",
            where=folder,
            fix="Call train() without resume_from_checkpoint, or name a checkpoint.",
        )
    return found


@contextmanager
def _free_skips() -> Iterator[None]:
    """While it lasts, Trainer's skipping of the batches of a resumed epoch costs nothing.

    Trainer must know how many batches of the epoch are done, or it counts the rest as an epoch of
    its own: its accumulation groups and `state.epoch` are then other ones. It would read and drop
    them; the loader stands behind them already.
    """
    module: Any = transformers.trainer
    skip = module.skip_first_batches

    def skipped(dataloader: Any, num_batches: int = 0) -> Any:
        return dataloader if _is_ours(dataloader) else skip(dataloader, num_batches)

    module.skip_first_batches = skipped
    try:
        yield
    finally:
        module.skip_first_batches = skip


def _is_ours(dataloader: Any) -> bool:
    """Whether a data loader is TrainBatches, or DeepSpeed's sequence-parallel adapter around it."""
    return isinstance(getattr(dataloader, "dl", dataloader), TrainBatches)


def check_loader(dataset: Any, name: str, task: str = SFT) -> ShardLoader | None:
    """The ShardLoader that `dataset` is, or None that it is.

    Raises UsageError for what accelerate would shard again, and for rows of another task.
    """
    if isinstance(dataset, ShardLoader) and dataset.dataset.task != task:
        raise UsageError(
            f"{name} holds rows for another kind of training",
            where=dataset.dataset.members[0].root,
            expected=f"the task {task}",
            found=f"the task {dataset.dataset.task}",
            fix="Use ShardDPOTrainer for preference, ShardKTOTrainer for kto, others for sft.",
        )
    if dataset is None or isinstance(dataset, ShardLoader):
        return dataset
    raise UsageError(
        f"{name} would be sharded a second time",
        expected="a ShardLoader",
        found=type(dataset).__name__,
        fix=_FIX,
    )


def _check_each(datasets: Any, name: str, task: str) -> None:
    for dataset in datasets.values() if isinstance(datasets, dict) else [datasets]:
        check_loader(dataset, name, task)


def _check_sizes(loader: ShardLoader, args: Any) -> None:
    if loader.dataset.padding.loss_weights is not None:
        raise UsageError(
            "loss_weights would have no effect: Trainer takes the model's own loss",
            found=f"loss_weights={loader.dataset.padding.loss_weights!r}",
            fix="Leave it out, or train with a loop of your own (docs/how-to/loss.md).",
        )
    if args.n_gpu > 1:
        raise UsageError(
            "Trainer would cut every batch of this process for several GPUs",
            expected="a process for each GPU",
            found=f"{args.n_gpu} GPUs in one process",
            fix="Start it with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES=0.",
        )
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


def _sizes_of(datasets: Any) -> set[int]:
    """The batch sizes of the evaluation loaders."""
    each = datasets.values() if isinstance(datasets, dict) else [datasets]
    return {loader.batch_size for loader in each if loader is not None}


def _warn_of_unused(args: Any, eval_sizes: set[int]) -> None:
    """Name the arguments that were set, and have no effect on a ShardLoader."""
    defaults = {field.name: field.default for field in fields(args)}
    if eval_sizes <= {args.per_device_eval_batch_size}:
        del defaults["per_device_eval_batch_size"]
    unused = [
        f"{name}={getattr(args, name)!r}"
        for name in _WITHOUT_EFFECT
        if name in defaults and getattr(args, name) != defaults[name]
    ]
    if unused:
        warnings.warn(
            f"{', '.join(unused)} of TrainingArguments: without effect, a ShardLoader has its own "
            "options (batch_size, num_workers, drop_last, prefetch, seed, group_by_length)",
            stacklevel=3,
        )
