"""TRL's trainers over packed shards: tokens, masks and packs are those of the dataset.

    from shardkit.integrations.trl import ShardSFTTrainer
    trainer = ShardSFTTrainer(model, args=SFTConfig(...), train_dataset=ShardLoader("alpaca", 4))

SFTTrainer takes nothing but a `datasets.Dataset`, tokenises it and packs it again. Here it is
shown one row, already tokenised, while it sets up the model; the loader then takes its place.
"""

from __future__ import annotations

from typing import Any

import datasets
from trl.trainer.sft_trainer import SFTTrainer

from shardkit.errors import UsageError
from shardkit.integrations.trainer import ShardTrainerMixin, check_loader
from shardkit.integrations.trl_preference import (
    ShardDPOTrainer,
    ShardKTOTrainer,
    named,
    refuse_shorter,
)
from shardkit.loader import ShardLoader

__all__ = ["ShardDPOTrainer", "ShardKTOTrainer", "ShardSFTTrainer"]

_OURS = {
    **dict.fromkeys(("packing", "padding_free", "eval_packing"), "would lay out rows anew"),
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), "would choose labels anew"),
}
"""Arguments of SFTConfig that decide what a dataset has decided, and what they would do."""


class _Set(SFTTrainer):
    """SFTTrainer, set up with a row in place of its data."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        train, evaluation = kwargs.get("train_dataset"), kwargs.get("eval_dataset")
        arguments = kwargs.get("args")
        if arguments is not None:
            _prepare(arguments)
        refuse_shorter(arguments, train, evaluation)
        if isinstance(train, ShardLoader):
            kwargs["train_dataset"] = _one_row(train)
        kwargs["eval_dataset"] = None
        super().__init__(*args, **kwargs)
        self.train_dataset = train
        self.eval_dataset = evaluation


class ShardSFTTrainer(ShardTrainerMixin, _Set):
    """SFTTrainer whose `train_dataset` and `eval_dataset` are ShardLoader objects.

    What the dataset's manifest says decides tokens, labels, lengths and packs: `packing`,
    `padding_free`, `completion_only_loss` and the like of SFTConfig are refused, and a
    `max_length` below the dataset's. Checkpoints and evaluation are those of ShardTrainerMixin.
    Raises UsageError.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = named(SFTTrainer, args, kwargs)
        check_loader(given.get("train_dataset"), "train_dataset")
        super().__init__(**given)


def _prepare(arguments: Any) -> None:
    """Refuse what the dataset has decided, and have SFTTrainer leave the data alone."""
    for name, what in _OURS.items():
        if getattr(arguments, name, None):
            raise UsageError(
                f"{name} of SFTConfig {what}: they are as they were packed",
                found=f"{name}={getattr(arguments, name)!r}",
                fix="Leave it out; shardkit pack decides (--packing, --train-on).",
            )
    arguments.dataset_kwargs = {**(arguments.dataset_kwargs or {}), "skip_prepare_dataset": True}


def _one_row(loader: ShardLoader) -> Any:
    """A dataset of one row of two tokens: what SFTTrainer looks at in its constructor."""
    pad = loader.dataset.padding.pad_token_id
    row = {"input_ids": [[pad, pad]], "labels": [[pad, pad]], "attention_mask": [[1, 1]]}
    return datasets.Dataset.from_dict(row)
