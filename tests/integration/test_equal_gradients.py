"""With the count of the step, any ranks and accumulation have one big batch's gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from records import alpaca_rows, pack_small, write_json
from tiny_models import tiny_llama
from transformers import Trainer, TrainingArguments

from shardkit import ShardLoader
from shardkit.integrations.trainer import ShardTrainerMixin

ROWS = 24
"""Of a step, whoever reads them."""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gradients")
    source = write_json(folder / "rows.json", alpaca_rows(31))
    for packing in ("none", "best-fit"):
        pack_small(source, folder / packing, packing=packing)
    return {packing: folder / packing for packing in ("none", "best-fit")}


def gradient(dataset: Path, n_ranks: int, accumulation: int) -> tuple[torch.Tensor, float]:
    """Of the first step: the mean over ranks of what each has summed up, as DDP makes it."""
    model = tiny_llama()
    total = 0.0
    for rank in range(n_ranks):
        batch_size = ROWS // n_ranks // accumulation
        loader = ShardLoader(
            dataset, batch_size, shuffle=False, drop_last=False, rank=rank, world_size=n_ranks
        )
        for batch in loader:
            n_items = loader.num_items_in_batch(accumulation=accumulation)
            loss = model(**loader.model_inputs(batch), num_items_in_batch=n_items).loss * n_ranks
            (loss / n_ranks).backward()
            total += loss.item() / n_ranks
            if loader.ends_step(accumulation=accumulation):
                break
    return torch.cat(
        [one.grad.flatten() for one in model.parameters() if one.grad is not None]
    ), total


@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_gradients_are_those_of_one_big_batch(datasets: dict[str, Path], packing: str) -> None:
    """1, 2 and 4 ranks, accumulation 1 to 4; packs and rows of very different lengths."""
    expected, loss = gradient(datasets[packing], 1, 1)
    for n_ranks, accumulation in ((1, 2), (1, 4), (2, 1), (2, 3), (4, 1), (4, 2), (4, 3)):
        found, total = gradient(datasets[packing], n_ranks, accumulation)
        assert total == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


class OurTrainer(ShardTrainerMixin, Trainer):
    pass


def trained(dataset: Path, folder: Path, accumulation: int) -> tuple[torch.Tensor, list[float]]:
    """Weights and logged losses of Trainer: 31 rows in steps of 12, the last one is short."""
    model = tiny_llama()
    trainer = OurTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=12 // accumulation,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=ShardLoader(dataset, 12 // accumulation, shuffle=False, drop_last=False),
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return torch.cat([one.detach().flatten() for one in model.parameters()]), losses


def test_trainer_s_accumulation_changes_nothing(datasets: dict[str, Path], tmp_path: Path) -> None:
    """The same losses and weights as with one batch a step."""
    expected, losses = trained(datasets["none"], tmp_path, 1)
    for accumulation in (2, 3):
        found, logged = trained(datasets["none"], tmp_path, accumulation)
        assert logged == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_count_reaches_the_model(datasets: dict[str, Path], tmp_path: Path) -> None:
    """Trainer's own count over the same batches is the indexes' number."""
    trainer = OurTrainer(
        model=tiny_llama(),
        args=TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True,
            gradient_accumulation_steps=3, report_to=[],
        ),
        train_dataset=ShardLoader(datasets["best-fit"], 4),
    )  # fmt: skip
    batches = iter(trainer.get_train_dataloader())
    for _ in range(2):
        group = [batch for _, batch in zip(range(3), batches, strict=False)]
        assert trainer._counts_by_index(group)
        ours = trainer._get_num_items_in_batch(group, torch.device("cpu"))
        theirs = Trainer._get_num_items_in_batch(trainer, group, torch.device("cpu"))
        assert ours == theirs
        assert not trainer._counts_by_index([dict(group[-1])])
