"""Transformers' Trainer with DeepSpeed ZeRO-1 on two ranks over our loader."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import reports, run, torchrun
from records import TOKENIZER, alpaca_rows, write_json

from shardkit import ShardDataset, pack
from shardkit.errors import UsageError

SCRIPT = Path(__file__).with_name("run_trainer.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    pack(
        write_json(folder / "rows.json", alpaca_rows(99)),
        folder / "out",
        tokenizer=TOKENIZER,
        template="qwen_chat",
        max_length=64,
        shard_size=30_000,
    )
    return folder / "out"


@pytest.mark.slow
def test_each_sample_once_an_epoch_and_exact_resume(dataset: Path, tmp_path: Path) -> None:
    """Both ranks train on their own samples; a resumed run sees what the uncut one would have."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(torchrun(2, SCRIPT, dataset, whole))
    ranks = reports(whole, 2)
    n_steps = 99 // 8
    for epoch in range(2):
        steps = slice(epoch * n_steps, (epoch + 1) * n_steps)
        seen = [key for rank in ranks for batch in rank["keys"][steps] for key in batch]
        assert len(seen) == len(set(seen)) == n_steps * 8
    assert [len(rank["keys"]) for rank in ranks] == [2 * n_steps] * 2

    run(torchrun(2, SCRIPT, dataset, parts, "--stop", 9))
    run(torchrun(2, SCRIPT, dataset, parts, "--resume"))
    resumed = reports(parts, 2)
    for rank, again in zip(ranks, resumed, strict=True):
        assert again["keys"] == rank["keys"][7:] or again["keys"] == rank["keys"][9:]
        assert again["step"] == rank["step"] == 2 * n_steps


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
