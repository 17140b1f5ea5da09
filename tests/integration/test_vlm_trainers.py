"""Transformers' Trainer and Lightning give a vision-language model all that its family needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processors import build
from tiny_vlm import tiny_model
from transformers import Trainer, TrainingArguments
from vlm_rows import write

from shardkit import ShardLoader, pack
from shardkit.integrations.trainer import ShardTrainerMixin

NAME = "qwen2_5_vl"


class OurTrainer(ShardTrainerMixin, Trainer):
    """As the documents have it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(dataset of packs with pictures, processor's folder)."""
    root = tmp_path_factory.mktemp("vlm_trainers")
    rows = write(root, 10)
    build(NAME).save_pretrained(root / NAME)
    options: dict[str, Any] = {"processor": root / NAME, "image_root": root / "images"}
    pack(rows, root / "out", packing="best-fit", max_length=200, **options)
    return root / "out", root / NAME


@pytest.fixture(scope="module")
def expected(made: tuple[Path, Path]) -> list[float]:
    """The loss of each batch by the model called directly."""
    model, loader = tiny_model(NAME), loader_of(made)
    with torch.no_grad():
        losses = [float(model(**loader.model_inputs(batch)).loss) for batch in loader]
    assert len(losses) > 1
    return losses


def loader_of(made: tuple[Path, Path]) -> ShardLoader:
    """One pack a batch, always in the same order."""
    out, folder = made
    return ShardLoader(out, 1, seed=1, processor=folder, image_pad="always-one")


def test_trainer_passes_the_keys(
    made: tuple[Path, Path], expected: list[float], tmp_path: Path
) -> None:
    """With learning rate 0 every logged loss is that of the model called directly."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=1, num_train_epochs=1,
        learning_rate=0.0, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = OurTrainer(model=tiny_model(NAME), args=arguments, train_dataset=loader_of(made))
    trainer.train()
    tiny_model(NAME).eval()
    found = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightning_passes_the_keys(
    made: tuple[Path, Path], expected: list[float], tmp_path: Path
) -> None:
    """The data module's batches, given to `model_inputs`, have the same losses."""
    pl = pytest.importorskip("lightning.pytorch")
    from shardkit.integrations.lightning import ShardDataModule

    losses: list[float] = []
    validated: list[float] = []

    class Model(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model(NAME)

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(**ShardLoader.model_inputs(batch)).loss
            losses.append(loss.item())
            return loss

        def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
            validated.append(float(self.model(**ShardLoader.model_inputs(batch)).loss))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, default_root_dir=tmp_path,
        enable_checkpointing=False, num_sanity_val_steps=0, **quiet,
    )  # fmt: skip
    data = ShardDataModule(loader_of(made), val=loader_of(made))
    trainer.fit(Model(), datamodule=data)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert validated == pytest.approx(expected, rel=1e-4)
