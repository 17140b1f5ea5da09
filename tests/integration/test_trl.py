"""TRL: SFTTrainer over a loader trains on what Trainer trains on; an export keeps packs apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from records import TOKENIZER, alpaca_dataset
from tiny_models import tiny_llama
from transformers import AutoTokenizer
from trl_runs import short_run

from shardkit import ShardLoader, ShardTable
from shardkit.errors import UsageError

trl = pytest.importorskip("trl", reason="TRL is not installed")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    return alpaca_dataset(folder, 60, max_length=128, packing="best-fit")


def config(folder: Path, **more: Any) -> Any:
    return short_run(trl.SFTConfig, folder, **more)


def losses(trainer: Any) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sft_trainer_trains_on_what_trainer_does(packed: Path, tmp_path: Path) -> None:
    """The same keys in the same order and the same losses as Transformers' Trainer; resumed too."""
    from transformers import Trainer

    from shardkit.integrations.trainer import ShardTrainerMixin
    from shardkit.integrations.trl import ShardSFTTrainer

    class Sft(ShardSFTTrainer):
        keep_keys = True

    class Plain(ShardTrainerMixin, Trainer):
        keep_keys = True

    def loader() -> ShardLoader:
        return ShardLoader(packed, 2, seed=1, sample_keys=True)

    plain = Plain(model=tiny_llama(), args=config(tmp_path / "plain"), train_dataset=loader())
    plain.train()
    options: dict[str, Any] = {
        "processing_class": AutoTokenizer.from_pretrained(TOKENIZER),
        "eval_dataset": loader(),
    }
    sft = Sft(tiny_llama(), args=config(tmp_path / "sft"), train_dataset=loader(), **options)
    sft.train()
    assert sft.seen_keys == plain.seen_keys
    assert losses(sft) == pytest.approx(losses(plain), rel=1e-5)
    assert sft.evaluate()["eval_loss"] > 0

    again = Sft(tiny_llama(), args=config(tmp_path / "sft"), train_dataset=loader(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "sft" / "checkpoint-2"))
    assert again.seen_keys == sft.seen_keys[2:]
    assert losses(again) == losses(sft)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_would_lay_out_rows_anew_is_refused(packed: Path, tmp_path: Path) -> None:
    """Packs, labels and lengths are the dataset's matter; only a ShardLoader is shared out once."""
    from shardkit.integrations.trl import ShardSFTTrainer

    arguments = config(tmp_path, packing=True, max_length=128)
    with pytest.raises(UsageError, match="packing"):
        ShardSFTTrainer(tiny_llama(), args=arguments, train_dataset=ShardLoader(packed, 2))
    with pytest.raises(UsageError, match="packing"):  # by place, as SFTTrainer has it
        ShardSFTTrainer(tiny_llama(), arguments, None, ShardLoader(packed, 2))
    refused = {"completion_only_loss": True, "max_length": 64}
    for name, value in refused.items():
        more = config(tmp_path, **{name: value})
        with pytest.raises(UsageError, match=name):
            ShardSFTTrainer(tiny_llama(), more, train_dataset=ShardLoader(packed, 2))
    with pytest.raises(UsageError, match="sharded a second time"):
        ShardSFTTrainer(tiny_llama(), args=config(tmp_path), train_dataset=ShardTable(packed))


def test_an_export_has_the_documents_of_each_pack(packed: Path, tmp_path: Path) -> None:
    """TRL's own collator makes our positions from the exported column `seq_lengths`."""
    datasets = pytest.importorskip("datasets")
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from shardkit.integrations.hf_export import export_hf

    export_hf(packed, tmp_path / "hf")
    rows = datasets.load_from_disk(str(tmp_path / "hf"))
    columns = ["input_ids", "labels", "seq_lengths"]
    examples = [{name: rows[i][name] for name in columns} for i in range(3)]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate(examples)
    table = ShardTable(packed)
    positions = torch.cat([table[i]["position_ids"] for i in range(3)])
    assert torch.equal(batch["position_ids"][0], positions)
    assert "attention_mask" not in batch
