"""Lightning's Trainer with DDP on CPU ranks that it starts itself; keys seen go into JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import LlamaConfig, LlamaForCausalLM

from shardkit import ShardDataset, ShardLoader, ShardMixture
from shardkit.integrations.lightning import ShardDataModule


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seen: list[list[str]] = []
        self.validated: list[list[str]] = []
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2, use_cache=False,
            )
        )  # fmt: skip

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["keys"])
        inputs = {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}
        loss: torch.Tensor = self.llama(**inputs, use_cache=False).loss
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(batch["keys"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=-1)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--endless", action="store_true")
    parser.add_argument("--resume")
    args = parser.parse_args()
    dataset = ShardDataset(args.dataset, seed=5)
    if args.endless:
        dataset = ShardMixture({args.dataset: 1.0}, seed=5, until="endless")
    data = ShardDataModule(
        ShardLoader(dataset, args.batch_size, sample_keys=True),
        val=ShardLoader(args.dataset, 4, shuffle=False, drop_last=False, sample_keys=True),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if args.ranks > 1 else "auto",
        devices=args.ranks,
        max_epochs=args.epochs,
        max_steps=args.steps,
        accumulate_grad_batches=args.accumulate,
        limit_train_batches=args.limit,
        val_check_interval=1000 if args.endless else None,
        check_val_every_n_epoch=None if args.endless else 1,
        default_root_dir=args.folder,
        callbacks=[
            ModelCheckpoint(
                args.folder, "{step}", every_n_train_steps=args.save_every, save_top_k=-1
            ),
            ModelCheckpoint(
                args.folder, "end-{epoch}", save_on_train_epoch_end=True, save_top_k=-1
            ),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, datamodule=data, ckpt_path=args.resume)
    (args.folder / f"rank{trainer.global_rank}.json").write_text(
        json.dumps({"keys": model.seen, "validated": model.validated})
    )


if __name__ == "__main__":
    main()
