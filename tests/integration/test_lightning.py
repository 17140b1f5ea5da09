"""Lightning on real ranks over our data module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import reports
from ranks import run_ranks
from records import alpaca_dataset

from shardkit import ShardLoader

pytest.importorskip("lightning")
SCRIPT = Path(__file__).with_name("run_lightning.py")
N_STEPS = 99 // 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lightning")
    return alpaca_dataset(folder, 99, shard_size=30_000)


def fit(dataset: Path, folder: Path, *options: object, ranks: int = 2) -> list[list[str]]:
    """Run the script; the keys of each global batch, in rank order."""
    folder.mkdir()
    run_ranks(ranks, SCRIPT, dataset, folder, "--ranks", ranks, *options)
    seen = [rank["keys"] for rank in reports(folder, ranks)]
    return [[key for keys in step for key in keys] for step in zip(*seen, strict=True)]


def epochs_of(dataset: Path, n: int) -> list[list[str]]:
    """The keys of each global batch that loaders made here give."""
    ranks = [
        ShardLoader(dataset, 4, seed=5, rank=rank, world_size=2, sample_keys=True)
        for rank in range(2)
    ]
    steps: list[list[str]] = []
    for _ in range(n):
        for batches in zip(*ranks, strict=True):
            steps.append([key for batch in batches for key in batch["keys"]])
    return steps


@pytest.mark.slow
def test_each_sample_once_an_epoch_and_exact_resume(dataset: Path, tmp_path: Path) -> None:
    """2 ranks see what the loader says; resumed in mid-epoch, after an epoch and on 1 rank too."""
    whole = fit(dataset, tmp_path / "whole", "--save-every", 4)
    expected = epochs_of(dataset, 2)
    assert whole == expected
    for epoch in range(2):
        steps: Sequence[list[str]] = whole[epoch * N_STEPS : (epoch + 1) * N_STEPS]
        seen = [key for step in steps for key in step]
        assert len(seen) == len(set(seen)) == N_STEPS * 8
    validated = [
        key for rank in reports(tmp_path / "whole", 2) for b in rank["validated"] for key in b
    ]
    assert sorted(filter(None, validated)) == sorted(2 * sorted({*validated} - {""}))
    assert len({*validated} - {""}) == 99

    for step, name, ranks, batch_size in ((12, "end-epoch=0", 2, 4), (16, "step=16", 1, 8)):
        resumed = fit(
            dataset, tmp_path / f"from-{step}", "--batch-size", batch_size,
            "--resume", tmp_path / f"whole/{name}.ckpt", ranks=ranks,
        )  # fmt: skip
        assert resumed == expected[step:], step


@pytest.mark.slow
def test_accumulation_limits_and_endless_mixtures(dataset: Path, tmp_path: Path) -> None:
    """No batch is seen twice or counted early, whatever Lightning makes an epoch of."""
    expected = epochs_of(dataset, 2)
    limited = fit(dataset, tmp_path / "limited", "--limit", 5, "--epochs", 4, "--accumulate", 2)
    assert limited == expected[:20]

    endless = ("--endless", "--epochs", -1, "--save-every", 7)
    whole = fit(dataset, tmp_path / "endless", *endless, "--steps", 20)
    resumed = fit(
        dataset, tmp_path / "endless-2", *endless, "--steps", 20,
        "--resume", tmp_path / "endless/step=14.ckpt",
    )  # fmt: skip
    assert len(whole) == 20
    assert resumed == whole[14:]


@pytest.mark.filterwarnings("ignore")
def test_overfit_batches_are_the_same_batches(dataset: Path, tmp_path: Path) -> None:
    """`overfit_batches=2` trains on the same two batches in every Lightning epoch."""
    import lightning.pytorch as pl

    from shardkit.integrations.lightning import ShardDataModule

    seen: list[list[str]] = []

    class Watch(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
            seen.append(batch["keys"])
            loss: torch.Tensor = self.layer(torch.ones(1, 1)).sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        overfit_batches=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = ShardLoader(dataset, 4, seed=1, sample_keys=True)
    trainer.fit(Watch(), datamodule=ShardDataModule(loader))
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
