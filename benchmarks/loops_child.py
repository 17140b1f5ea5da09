"""One training loop of benchmarks/loops.py, on the ranks that torchrun starts.

    torchrun --nproc_per_node 2 benchmarks/loops_child.py NAME DATASET FOLDER

Each rank writes FOLDER/rank<N>.json: keys, losses and weights of a whole run, and of the rest of
it from a checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from shardkit import ShardLoader
from shardkit.dataset import load_manifest, open_dataset

BATCH, ACCUMULATION, STEPS, SAVE_AT, RATE = 2, 2, 6, 3, 0.2
Run = dict[str, Any]


def tiny_model(dataset: str) -> LlamaForCausalLM:
    """The same weights at every call."""
    torch.manual_seed(0)
    vocabulary = load_manifest(dataset).recipe["tokenizer"]["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def loader_of(dataset: str, **options: Any) -> ShardLoader:
    """The rank's batches; it finds its rank by itself."""
    return ShardLoader(dataset, BATCH, seed=3, sample_keys=True, **options)


def vector(parameters: Sequence[torch.Tensor]) -> list[float]:
    """Weights end to end."""
    return torch.cat([one.detach().flatten().float() for one in parameters]).tolist()  # type: ignore[no-any-return]


def difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference, as a part of the largest expected value."""
    if len(found) != len(expected):
        return float("inf")
    one, two = np.array(found), np.array(expected)
    return float(np.abs(one - two).max() / np.abs(two).max())


def reference(dataset: str, n_ranks: int, accumulation: int) -> Run:
    """One process that sums up the loss of all rows of a step, whoever reads them."""
    model = tiny_model(dataset)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loaders = [loader_of(dataset, rank=rank, world_size=n_ranks) for rank in range(n_ranks)]
    run: Run = {"keys": [[] for _ in loaders], "losses": []}
    total, share = 0, 0.0
    losses: list[torch.Tensor] = []
    for batches in zip(*loaders, strict=True):
        for rank, batch in enumerate(batches):
            run["keys"][rank].append(batch["keys"])
            logits = model(**loaders[0].model_inputs(batch)).logits[:, :-1].flatten(0, 1)
            labels = batch["labels"][:, 1:].flatten()
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            total += int((labels != -100).sum())
        if len(losses) == n_ranks * accumulation:
            loss = torch.stack(losses).sum() / total
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            share = loss.item()
            run["losses"].append(share)
            losses, total = [], 0
        if len(run["losses"]) == STEPS:
            break
    run["weights"] = vector([*model.parameters()])
    return run


class Ddp:
    """torch's DistributedDataParallel in a loop of one's own."""

    def __init__(self, dataset: str) -> None:
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        self.plain = tiny_model(dataset)
        self.model = self.wrapped()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)
        self.factor = float(dist.get_world_size())
        """Gradients are divided by it on their way: the loss is multiplied by it."""

    def wrapped(self) -> Any:
        return torch.nn.parallel.DistributedDataParallel(self.plain)

    def backward(self, loss: torch.Tensor, is_done: bool) -> None:
        loss.backward()
        if is_done:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def within(self, is_done: bool) -> Any:
        return nullcontext()

    def weights(self) -> list[float]:
        return vector([*self.plain.parameters()])

    def save(self, folder: Path, state: Run) -> None:
        if dist.get_rank() == 0:
            torch.save({"model": self.plain.state_dict(), "loader": state}, folder / "saved.pt")
        dist.barrier()

    def load(self, folder: Path) -> Run:
        saved = torch.load(folder / "saved.pt")
        self.plain.load_state_dict(saved["model"])
        return saved["loader"]  # type: ignore[no-any-return]


class Fsdp2(Ddp):
    """torch's fully_shard, with torch.distributed.checkpoint."""

    def wrapped(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(self.plain, mesh=mesh)
        return self.plain

    def weights(self) -> list[float]:
        return vector([one.full_tensor() for one in self.plain.parameters()])  # type: ignore[attr-defined]

    def save(self, folder: Path, state: Run) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save({"model": self.plain.state_dict()}, checkpoint_id=folder / "dcp")
        if dist.get_rank() == 0:
            (folder / "loader.json").write_text(json.dumps(state))
        dist.barrier()

    def load(self, folder: Path) -> Run:
        import torch.distributed.checkpoint as dcp

        weights = self.plain.state_dict()
        dcp.load({"model": weights}, checkpoint_id=folder / "dcp")
        self.plain.load_state_dict(weights)
        return json.loads((folder / "loader.json").read_text())  # type: ignore[no-any-return]


class Accelerated(Ddp):
    """Accelerate's own accumulation and checkpoints; the loader is one of its objects."""

    def __init__(self, dataset: str) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
        super().__init__(dataset)
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.factor *= ACCUMULATION

    def wrapped(self) -> Any:
        return self.accelerator.prepare(self.plain)

    def within(self, is_done: bool) -> Any:
        return self.accelerator.accumulate(self.model)

    def backward(self, loss: torch.Tensor, is_done: bool) -> None:
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Zero:
    """DeepSpeed's engine; each step's end is told it."""

    stage = 1

    def __init__(self, dataset: str) -> None:
        import deepspeed

        from shardkit.integrations.deepspeed import without_shm_build

        without_shm_build()
        model = tiny_model(dataset)
        config = {
            "train_micro_batch_size_per_gpu": BATCH,
            "gradient_accumulation_steps": ACCUMULATION,
            "zero_optimization": {"stage": self.stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        self.model, *_ = deepspeed.initialize(
            model=model,
            model_parameters=model.parameters(),
            optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
            config=config,
        )
        self.factor = float(dist.get_world_size() * ACCUMULATION)

    def within(self, is_done: bool) -> Any:
        self.model.set_gradient_accumulation_boundary(is_done)
        return nullcontext()

    def backward(self, loss: torch.Tensor, is_done: bool) -> None:
        self.model.backward(loss)
        self.model.step()

    def weights(self) -> list[float]:
        import deepspeed

        parameters = [*self.model.module.parameters()]
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.stage == 3):
            return vector(parameters)

    def save(self, folder: Path, state: Run) -> None:
        self.model.save_checkpoint(str(folder / "zero"), client_state={"loader": state})

    def load(self, folder: Path) -> Run:
        _, state = self.model.load_checkpoint(str(folder / "zero"))
        return state["loader"]  # type: ignore[no-any-return]


class Zero2(Zero):
    stage = 2


class Zero3(Zero):
    stage = 3


def own_loop(kind: Callable[[str], Any]) -> Callable[[str, Path, bool], Run]:
    """A loop of one's own around one of the classes above."""

    def run(dataset: str, folder: Path, resumes: bool) -> Run:
        loop, loader = kind(dataset), loader_of(dataset)
        done = 0
        if resumes:
            loader.load_state_dict(loop.load(folder))
            done = SAVE_AT
        found: Run = {"keys": [], "losses": []}
        share = torch.zeros(1)
        for batch in loader:
            found["keys"].append(batch["keys"])
            n_items = loader.num_items_in_batch(accumulation=ACCUMULATION)
            is_done = loader.ends_step(accumulation=ACCUMULATION)
            with loop.within(is_done):
                inputs = loader.model_inputs(batch)
                loss = loop.model(**inputs, num_items_in_batch=n_items).loss
                loop.backward(loss * loop.factor, is_done)
            share += loss.detach()
            if not is_done:
                continue
            dist.all_reduce(share)
            found["losses"].append(share.item())
            share.zero_()
            if done + len(found["losses"]) == STEPS:
                break
            if not resumes and len(found["losses"]) == SAVE_AT:
                loop.save(folder, loader.state_dict())
        return found | {"weights": loop.weights()}

    return run


def lightning(dataset: str, folder: Path, resumes: bool) -> Run:
    """Lightning's Trainer with a ShardDataModule."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from shardkit.integrations.lightning import ShardDataModule

    found: Run = {"keys": [], "losses": []}

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model(dataset)
            self.share = 0.0

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            found["keys"].append(batch["keys"])
            loader: ShardLoader = self.trainer.datamodule.train  # type: ignore[attr-defined]
            n_items = loader.num_items_in_batch(accumulation=ACCUMULATION)
            inputs = loader.model_inputs(batch)
            loss: torch.Tensor = self.model(**inputs, num_items_in_batch=n_items).loss
            self.share += loss.item()
            if loader.ends_step(accumulation=ACCUMULATION):
                share = torch.tensor(self.share)
                dist.all_reduce(share)
                found["losses"].append(share.item())
                self.share = 0.0
            return loss * self.trainer.world_size * ACCUMULATION

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    trainer = pl.Trainer(
        accelerator="cpu", strategy="ddp", devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        max_steps=STEPS, accumulate_grad_batches=ACCUMULATION, default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=SAVE_AT, save_top_k=-1)],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Model()
    resume = str(folder / f"step={SAVE_AT}.ckpt") if resumes else None
    trainer.fit(model, datamodule=ShardDataModule(loader_of(dataset)), ckpt_path=resume)
    return found | {"weights": vector([*model.model.parameters()])}


def trainer_of(name: str) -> Callable[[str, Path, bool], Run]:
    """Transformers' Trainer, or TRL's SFTTrainer."""

    def run(dataset: str, folder: Path, resumes: bool) -> Run:
        made: Any
        more: dict[str, Any] = {}
        options: dict[str, Any] = {
            "output_dir": str(folder / "trainer"),
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": ACCUMULATION,
            "max_steps": STEPS,
            "save_steps": SAVE_AT,
            "logging_steps": 1,
            "optim": "sgd",
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
        }
        if name == "trl":
            from trl import SFTConfig

            from shardkit.integrations.trl import ShardSFTTrainer

            class Ours(ShardSFTTrainer):
                keep_keys = True

            own = str(open_dataset(dataset).tokenizer_folder())
            more["processing_class"] = AutoTokenizer.from_pretrained(own)
            arguments: Any = SFTConfig(**options, bf16=False, max_length=None)
            made = Ours
        else:
            from transformers import Trainer, TrainingArguments

            from shardkit.integrations.trainer import ShardTrainerMixin

            class Plain(ShardTrainerMixin, Trainer):
                keep_keys = True

            arguments, made = TrainingArguments(**options), Plain
        model = tiny_model(dataset)
        trainer = made(model=model, args=arguments, train_dataset=loader_of(dataset), **more)
        resume = folder / "trainer" / f"checkpoint-{SAVE_AT}"
        trainer.train(resume_from_checkpoint=str(resume) if resumes else None)
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        weights = vector([*model.parameters()])
        return {"keys": trainer.seen_keys, "losses": losses, "weights": weights}

    return run


LOOPS: dict[str, Callable[[str, Path, bool], Run]] = {
    "ddp": own_loop(Ddp),
    "fsdp2": own_loop(Fsdp2),
    "accelerate": own_loop(Accelerated),
    "zero1": own_loop(Zero),
    "zero2": own_loop(Zero2),
    "zero3": own_loop(Zero3),
    "lightning": lightning,
    "trainer": trainer_of("trainer"),
    "trl": trainer_of("trl"),
}


def main() -> None:
    """A whole run, then the rest of it from its checkpoint."""
    name, dataset, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    found: Run = {"accumulation": ACCUMULATION}
    for part in ("whole", "rest"):
        found[part] = LOOPS[name](dataset, folder, part == "rest")
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
