"""Transformers' Trainer with DeepSpeed ZeRO-1 on two ranks over our loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import reports
from ranks import run_ranks
from records import alpaca_dataset
from transformers import AutoModelForCausalLM

from shardkit import ShardDataset, ShardLoader, ShardTable
from shardkit.errors import UsageError

SCRIPT = Path(__file__).with_name("run_trainer.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    return alpaca_dataset(folder, 99, shard_size=30_000)


@pytest.mark.slow
def test_each_sample_once_an_epoch_and_exact_resume(dataset: Path, tmp_path: Path) -> None:
    """Both ranks train on their own samples; a resumed run sees what the uncut one would have."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_ranks(2, SCRIPT, dataset, whole)
    ranks = reports(whole, 2)
    n_steps = 99 // 8
    for epoch in range(2):
        steps = slice(epoch * n_steps, (epoch + 1) * n_steps)
        seen = [key for rank in ranks for batch in rank["keys"][steps] for key in batch]
        assert len(seen) == len(set(seen)) == n_steps * 8
    assert [len(rank["keys"]) for rank in ranks] == [2 * n_steps] * 2

    assert ranks[0]["eval_loss"] == ranks[1]["eval_loss"]
    assert ranks[0]["eval_loss"] == pytest.approx(
        mean_step_loss(whole / "model", dataset), rel=1e-5
    )
    table = ShardTable(dataset)
    rows = [table[i]["input_ids"].tolist() for i in range(len(table))]
    for rank in ranks:
        pairs = zip(rank["eval_tokens"], rows, strict=True)
        assert all(seen[: len(row)] == row for seen, row in pairs)

    run_ranks(2, SCRIPT, dataset, parts, "--stop", 9)
    run_ranks(2, SCRIPT, dataset, parts, "--resume")
    resumed = reports(parts, 2)
    for rank, again in zip(ranks, resumed, strict=True):
        assert again["keys"] == rank["keys"][7:] or again["keys"] == rank["keys"][9:]
        assert again["step"] == rank["step"] == 2 * n_steps


def mean_step_loss(model_path: Path, dataset: Path) -> float:
    """What evaluation must give: the loss of the tokens of each step of 8 rows, the last one of 3,
    weighed by its rows. No row is added here; on 2 ranks one has only added rows in that step."""
    model = AutoModelForCausalLM.from_pretrained(model_path)
    table = ShardTable(dataset)
    losses, n_rows = [], []
    for begin in range(0, len(table), 8):
        batch = table.collate([table[i] for i in range(begin, min(begin + 8, len(table)))])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with torch.no_grad():
            n_rows.append(len(batch["input_ids"]))
            losses.append(model(**inputs, use_cache=False).loss.item())
    assert len(losses) == 13
    return float(sum(loss * n for loss, n in zip(losses, n_rows, strict=True)) / sum(n_rows))


@pytest.mark.slow
def test_accumulation_sees_the_same_batches(dataset: Path, tmp_path: Path) -> None:
    """Two micro-batches a step: the keys of an epoch stay what they are; half the steps."""
    run_ranks(2, SCRIPT, dataset, tmp_path, "--accumulate", 2)
    for number, rank in enumerate(reports(tmp_path, 2)):
        alone = ShardLoader(dataset, 4, seed=5, rank=number, world_size=2, sample_keys=True)
        assert rank["keys"] == [batch["keys"] for _ in range(2) for batch in alone]
        assert rank["step"] == 12


def test_what_would_be_sharded_twice_is_refused(dataset: Path, tmp_path: Path) -> None:
    """A ShardDataset given to the mixin is refused with the way to do it."""
    from transformers import Trainer, TrainingArguments

    from shardkit.integrations.trainer import ShardTrainerMixin

    class OurTrainer(ShardTrainerMixin, Trainer):
        pass

    with pytest.raises(UsageError, match="sharded a second time"):
        OurTrainer(
            model=_model(),
            args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
            train_dataset=ShardDataset(dataset, rank=0, world_size=1),
        )


def _model() -> object:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
