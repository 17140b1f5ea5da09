"""Trainer in this process: a resumed run is the uncut run, and evaluation counts each row once."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from records import TOKENIZER, alpaca_dataset, write_json
from tiny_models import tiny_llama
from transformers import Trainer, TrainerCallback, TrainingArguments

from shardkit import ShardLoader, ShardTable, pack
from shardkit.errors import UsageError
from shardkit.integrations.trainer import ShardTrainerMixin

N_ROWS = 21
BATCH = 4


class OurTrainer(ShardTrainerMixin, Trainer):
    keep_keys = True


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer_loop")
    return alpaca_dataset(folder, N_ROWS, shard_size=20_000)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **(options | more))


@dataclass
class Run:
    """What a training run was, step by step."""

    steps: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By optimizer step: micro-batches that were read so far, and the epoch that Trainer says."""
    losses: dict[int, float] = field(default_factory=dict)
    keys: list[list[str]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def train(
    dataset: Path, folder: Path, accumulation: int, resume: Path | None = None, **more: Any
) -> Run:
    options = {"gradient_accumulation_steps": accumulation} | more
    trainer = OurTrainer(
        model=tiny_llama(),
        args=arguments(folder, **options),
        train_dataset=ShardLoader(dataset, BATCH, seed=1, sample_keys=True),
    )
    run = Run()

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            run.steps[state.global_step] = (len(trainer.seen_keys), state.epoch)

    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    logs = [log for log in trainer.state.log_history if "loss" in log]
    run.losses = {int(log["step"]): log["loss"] for log in logs}
    run.keys = trainer.seen_keys
    run.weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return run


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 5])
def test_every_checkpoint_resumes_the_uncut_run(
    dataset: Path, tmp_path: Path, accumulation: int
) -> None:
    """The same optimizer steps, groups, epochs, logged losses and weights, from any checkpoint.

    Five micro-batches an epoch: 2, 3 and 4 do not divide it.
    """
    whole = train(dataset, tmp_path / "whole", accumulation)
    assert len(whole.keys) == 10
    last = max(whole.steps)
    assert last == 2 * -(-5 // accumulation)
    for step in range(1, last):
        folder = tmp_path / f"from-{step}"
        checkpoint = folder / f"checkpoint-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", checkpoint)
        rest = train(dataset, folder, accumulation, checkpoint, save_strategy="no")
        done = whole.steps[step][0]
        assert rest.keys == whole.keys[done:]
        expected = {n: (read - done, at) for n, (read, at) in whole.steps.items() if n > step}
        assert rest.steps == expected
        assert {n: rest.losses[n] for n in expected} == {n: whole.losses[n] for n in expected}
        assert all(torch.equal(value, whole.weights[n]) for n, value in rest.weights.items())


@pytest.mark.parametrize(
    ("saved", "resumed"), [({}, {"batch": 8}), ({}, {"accumulation": 2}), ({"accumulation": 2}, {})]
)
def test_a_checkpoint_of_another_global_batch_is_refused(
    dataset: Path, tmp_path: Path, saved: dict[str, int], resumed: dict[str, int]
) -> None:
    """Trainer counts epochs in steps: with other steps rows would be left out or seen again."""
    train(dataset, tmp_path, saved.get("accumulation", 1), save_steps=3, max_steps=3)
    batch = resumed.get("batch", BATCH)
    trainer = OurTrainer(
        model=tiny_llama(),
        args=arguments(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=resumed.get("accumulation", 1),
        ),
        train_dataset=ShardLoader(dataset, batch, seed=1, sample_keys=True),
    )
    with pytest.raises(UsageError, match="not where the checkpoint's run was"):
        trainer.train(resume_from_checkpoint=True)


def test_what_cannot_be_resumed_is_said(dataset: Path, tmp_path: Path) -> None:
    """No checkpoint, one without our state, a loader that stands inside an epoch, and none."""
    loader = ShardLoader(dataset, BATCH, sample_keys=True)
    trainer = OurTrainer(model=tiny_llama(), args=arguments(tmp_path), train_dataset=loader)
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no loader state"):
        trainer.train(resume_from_checkpoint=True)
    loader.load_state_dict(loader.state_dict() | {"position": 8})
    with pytest.raises(UsageError, match="inside an epoch"):
        trainer.train()
    alone = OurTrainer(model=tiny_llama(), args=arguments(tmp_path), eval_dataset=loader)
    with pytest.raises(UsageError, match="no train_dataset"):
        alone.train()


def test_a_state_that_is_cut_off_is_said(dataset: Path, tmp_path: Path) -> None:
    """A checkpoint whose loader state, or Trainer's own, is no JSON: named, no traceback."""
    train(dataset, tmp_path, 1, max_steps=2)
    for name in ("trainer_state.json", "shardkit_loader.json"):
        path = tmp_path / "checkpoint-2" / name
        path.write_text(path.read_text()[:-3])
        with pytest.raises(UsageError, match=rf"(?s){name}.*cannot be read"):
            train(dataset, tmp_path, 1, tmp_path / "checkpoint-2")


def test_several_gpus_in_one_process_are_refused(dataset: Path, tmp_path: Path) -> None:
    """DataParallel would cut the borders of packs as if they were rows."""
    several = arguments(tmp_path)
    several._n_gpu = 2
    with pytest.raises(UsageError, match="torchrun"):
        OurTrainer(model=tiny_llama(), args=several, train_dataset=ShardLoader(dataset, BATCH))


def test_packs_under_sequence_parallelism_are_refused(tmp_path: Path) -> None:
    """DeepSpeed's adapter reads a second dimension of every tensor, and borders have one."""

    class Sequence(OurTrainer):
        def get_sp_size(self) -> int:
            return 2

    packed = alpaca_dataset(tmp_path, 12, packing="best-fit")
    loader = ShardLoader(packed, BATCH, sample_keys=True)
    trainer = Sequence(model=tiny_llama(), args=arguments(tmp_path), train_dataset=loader)
    with pytest.raises(UsageError, match="SequenceRows"):
        trainer.get_train_dataloader()


class RowLoss(torch.nn.Module):
    """Its loss is the mean over rows of each row's first token; its predictions are these."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        values = input_ids[:, 1:9].double().sum(1)
        return {"loss": values.mean() + 0 * self.weight.sum(), "logits": values[:, None]}


@pytest.fixture
def nine(dataset: Path, tmp_path: Path) -> Path:
    rows = json.loads((dataset.parent / "rows.json").read_text())[:9]
    pack(
        write_json(tmp_path / "nine.json", rows),
        tmp_path / "nine",
        tokenizer=TOKENIZER,
        template="qwen_chat",
    )
    return tmp_path / "nine"


def row_values(dataset: Path) -> list[float]:
    table = ShardTable(dataset)
    return [float(table[i]["input_ids"][1:9].sum()) for i in range(len(table))]


@pytest.mark.parametrize("drop_last", [True, False])
def test_evaluation_counts_each_row_once(nine: Path, tmp_path: Path, drop_last: bool) -> None:
    """Nine rows in batches of four: the loss is the mean of the rows, metrics get nine rows."""
    expected = row_values(nine)
    loader = ShardLoader(nine, BATCH, shuffle=False, drop_last=drop_last)
    trainer = OurTrainer(
        model=RowLoss(),
        args=arguments(tmp_path),
        eval_dataset=loader,
        compute_metrics=lambda found: {"rows": len(found.predictions)},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(sum(expected) / 9)
    assert metrics["eval_rows"] == 9
    predicted: Any = trainer.predict(loader)  # type: ignore[arg-type]
    assert predicted.predictions[:, 0].tolist() == expected
    assert loader.state_dict()["epoch"] == 0


def test_evaluation_sets_by_name(nine: Path, tmp_path: Path) -> None:
    """A dict of loaders at the constructor, during training, and in evaluate()."""
    sets = {name: ShardLoader(nine, BATCH, shuffle=False) for name in ("a", "b")}
    trainer = OurTrainer(
        model=tiny_llama(),
        args=arguments(tmp_path, eval_strategy="epoch", num_train_epochs=1, save_strategy="no"),
        train_dataset=ShardLoader(nine, BATCH, sample_keys=True),
        eval_dataset=sets,
    )
    trainer.train()
    names = {name for log in trainer.state.log_history for name in log}
    assert {"eval_a_loss", "eval_b_loss"} <= names
    another: Any = {"c": sets["a"]}
    assert "eval_c_loss" in trainer.evaluate(another)


def test_the_training_loader_may_be_evaluated_between_steps(dataset: Path, tmp_path: Path) -> None:
    """Evaluation over the very loader that trains leaves its order and its checkpoints alone."""
    plain = train(dataset, tmp_path / "plain", 1, save_strategy="no")
    loader = ShardLoader(dataset, BATCH, seed=1, sample_keys=True)
    trainer = OurTrainer(
        model=tiny_llama(),
        args=arguments(tmp_path / "both", eval_strategy="steps", eval_steps=3, save_steps=3),
        train_dataset=loader,
        eval_dataset=loader,
    )
    trainer.train()
    assert trainer.seen_keys == plain.keys
    state = json.loads((tmp_path / "both" / "checkpoint-3" / "shardkit_loader.json").read_text())
    assert (state["epoch"], state["position"]) == (0, 12)


@pytest.mark.parametrize(
    "option",
    [{"dataloader_num_workers": 2}, {"dataloader_drop_last": True}, {"data_seed": 7},
     {"per_device_eval_batch_size": 7}, {"auto_find_batch_size": True}],
)  # fmt: skip
def test_arguments_without_effect_are_named(
    dataset: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    """What a ShardLoader says itself is not taken from TrainingArguments in silence."""
    loader = ShardLoader(dataset, BATCH, sample_keys=True)
    with pytest.warns(UserWarning, match=next(iter(option))):
        OurTrainer(
            model=tiny_llama(),
            args=arguments(tmp_path, **option),
            train_dataset=loader,
            eval_dataset=loader,
        )


def test_each_node_keeps_the_state_when_asked_to(dataset: Path, tmp_path: Path) -> None:
    """Where Trainer saves (`should_save`), the loader's state is saved: on any node."""
    trainer = OurTrainer(
        model=tiny_llama(),
        args=arguments(tmp_path, save_on_each_node=True, max_steps=1),
        train_dataset=ShardLoader(dataset, BATCH, sample_keys=True),
    )
    trainer.state.is_world_process_zero = False
    (tmp_path / "checkpoint-0").mkdir()
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    assert (tmp_path / "checkpoint-0" / "shardkit_loader.json").is_file()
