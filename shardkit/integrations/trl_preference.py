"""TRL's DPOTrainer and KTOTrainer over preference rows that were packed: see integrations.trl."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, ClassVar

import datasets
import torch
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from shardkit.errors import UsageError
from shardkit.format.recipe import KTO, PREFERENCE
from shardkit.format.samples import IGNORE_INDEX
from shardkit.integrations.trainer import ShardTrainerMixin, check_loader
from shardkit.loader import ShardLoader
from shardkit.loader.collate import Batch

_NOT_FOR_MODELS = (
    *("labels", "position_ids", "keys", "n_padding_rows", "images", "image_rows", "loss_weights"),
)
_OURS = ("padding_free", "precompute_ref_log_probs")
"""Arguments that TRL acts on while it prepares a dataset, or that lay out rows anew."""


class _OneRow:
    """A trainer of TRL that is set up with a row in the place of its data."""

    row: ClassVar[dict[str, list[Any]]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        train, evaluation = kwargs.get("train_dataset"), kwargs.get("eval_dataset")
        _refuse_ours(kwargs.get("args"))
        refuse_shorter(kwargs.get("args"), train, evaluation)
        if isinstance(train, ShardLoader):
            kwargs["train_dataset"] = datasets.Dataset.from_dict(self.row)
        kwargs["eval_dataset"] = None
        super().__init__(*args, **kwargs)
        self.train_dataset = train
        self.eval_dataset = evaluation

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing: rows are ids already."""
        return dataset


class _Dpo(_OneRow, DPOTrainer):
    row: ClassVar[dict[str, list[Any]]] = {
        name: [[0]] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    }


class _Kto(_OneRow, KTOTrainer):
    row: ClassVar[dict[str, list[Any]]] = {
        **{name: [[0]] for name in ("prompt_ids", "completion_ids", "KL_completion_ids")},
        "label": [True],
    }


class ShardDPOTrainer(ShardTrainerMixin, _Dpo):
    """DPOTrainer whose `train_dataset` and `eval_dataset` are ShardLoader objects.

    They are of datasets that were packed with `--task preference`; batches are `stacked` from here
    on. Tokens and lengths are the dataset's: `max_length` of DPOConfig must not be shorter.
    Checkpoints and evaluation are those of ShardTrainerMixin. Raises UsageError.
    """

    task = PREFERENCE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = named(DPOTrainer, args, kwargs)
        check_loader(given.get("train_dataset"), "train_dataset", PREFERENCE)
        super().__init__(**given)
        _stack(self.train_dataset, self.eval_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """A pass over all rows of the loader, in stacked batches."""
        _stack(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The batches that `predict` goes through, stacked: a pass over all rows of the loader."""
        _stack(test_dataset)
        return super().get_test_dataloader(test_dataset)

    def model_inputs(self, batch: Batch) -> Batch:
        """What DPOTrainer's loss takes of a batch of pairs, without those that fill it up."""
        n_pairs = len(batch["input_ids"]) // 2
        n_kept = n_pairs - batch.get("n_padding_rows", 0)
        inputs = {name: one for name, one in batch.items() if name not in _NOT_FOR_MODELS}
        if n_kept in (0, n_pairs):
            return inputs
        # of 4 pairs 3 are kept: rows [0, 1, 2] of the chosen half, [4, 5, 6] of the other
        both = torch.arange(n_kept).repeat(2) + torch.tensor([0, n_pairs]).repeat_interleave(n_kept)
        return inputs | {name: inputs[name][both] for name in _PER_TOKEN if name in inputs}


class ShardKTOTrainer(ShardTrainerMixin, _Kto):
    """KTOTrainer whose `train_dataset` and `eval_dataset` are ShardLoader objects.

    They are of datasets that were packed with `--task kto`. As in TRL the KL term is of each
    prompt with the answer of the row before it in the batch. Tokens and lengths are the dataset's:
    `max_length` of KTOConfig must not be shorter. Checkpoints and evaluation are those of
    ShardTrainerMixin. Raises UsageError.
    """

    task = KTO

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = named(KTOTrainer, args, kwargs)
        loader = check_loader(given.get("train_dataset"), "train_dataset", KTO)
        super().__init__(**given)
        assert loader is not None  # noqa: S101 (TRL demands a dataset)
        recipe = loader.dataset.members[0].manifest.recipe
        self._longest = recipe["max_length"]
        self._pad = loader.dataset.padding.pad_token_id

    def model_inputs(self, batch: Batch) -> Batch:
        """What KTOTrainer's loss takes of a batch of labelled answers."""
        n_kept = len(batch["label"]) - batch.get("n_padding_rows", 0)
        inputs = {name: one for name, one in batch.items() if name not in _NOT_FOR_MODELS}
        inputs["completion_mask"] = batch["labels"].ne(IGNORE_INDEX).long()
        if n_kept:
            names = (name for name in (*_PER_TOKEN, "label") if name in inputs)
            inputs |= {name: inputs[name][:n_kept] for name in names}
        if self.calculate_KL:
            inputs |= self._mismatched(inputs)
        return inputs

    def _mismatched(self, inputs: Batch) -> Batch:
        """Each prompt with the answer of the row before it, the first with the last one's."""
        rows = zip(*(inputs[name] for name in _TOKENS), strict=True)
        parts = [_parts(*row) for row in rows]
        found = []
        for (prompt, _), (_, answer) in zip(parts, [parts[-1], *parts[:-1]], strict=True):
            ids = torch.cat((prompt, answer))[: self._longest]
            found.append((ids, torch.ones_like(ids), torch.arange(len(ids)).ge(len(prompt)).long()))
        fills = (self._pad, 0, 0)
        return {
            f"KL_{name}": torch.nn.utils.rnn.pad_sequence(
                [row[k] for row in found], batch_first=True, padding_value=fills[k]
            )
            for k, name in enumerate(_TOKENS)
        }


_TOKENS = ("input_ids", "attention_mask", "completion_mask")
_PER_TOKEN = (*_TOKENS, "token_type_ids", "mm_token_type_ids")
"""Names with a row for each row of tokens; the last two are there with a processor."""


def _parts(
    ids: torch.Tensor, attended: torch.Tensor, is_answer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt and the answer of a padded row."""
    answer = is_answer.bool()
    return ids[attended.bool() & ~answer], ids[answer]


def named(kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a trainer of TRL by their names, also those that were given by place."""
    given = inspect.signature(kind.__init__).bind_partial(None, *args, **kwargs).arguments
    return dict([*given.items()][1:])  # without self


def _stack(*given: Any) -> None:
    """Have these loaders, and those in dicts, give the batches that DPOTrainer takes."""
    for loader in _loaders(given):
        loader.pair_layout = "stacked"


def _loaders(given: Iterable[Any]) -> list[ShardLoader]:
    """The loaders among some datasets, and in dicts of them."""
    each = [one.values() if isinstance(one, dict) else [one] for one in given]
    return [one for some in each for one in some if isinstance(one, ShardLoader)]


def _refuse_ours(arguments: Any) -> None:
    """Refuse arguments that TRL acts on while it prepares a dataset."""
    for name in _OURS:
        if getattr(arguments, name, False):
            raise UsageError(
                f"{name} does nothing for rows that are tokenised already",
                found=f"{name}={getattr(arguments, name)!r}",
                fix="Leave it out.",
            )


def refuse_shorter(arguments: Any, *given: Any) -> None:
    """Refuse a max_length that would cut rows of these loaders, which nobody cuts again."""
    longest = getattr(arguments, "max_length", None)
    for loader in _loaders(given):
        packed = loader.dataset.members[0].manifest.recipe["max_length"]
        if longest is None or (packed is not None and packed <= longest):
            continue
        raise UsageError(
            "max_length of the trainer is shorter than the dataset's, whose rows are not cut again",
            where=loader.dataset.members[0].root,
            expected=f"max_length=None, or from {packed} on" if packed else "max_length=None",
            found=f"max_length={longest}",
            fix="Give max_length=None, or pack with --max-length.",
        )
