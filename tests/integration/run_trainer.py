"""Trainer with DeepSpeed ZeRO-1 on the ranks that torchrun starts; keys seen go into JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from shardkit import ShardLoader
from shardkit.integrations.deepspeed import without_shm_build
from shardkit.integrations.trainer import ShardTrainerMixin


class KeyTrainer(ShardTrainerMixin, Trainer):
    keep_keys = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int, default=-1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    args = parser.parse_args()
    without_shm_build()
    arguments = TrainingArguments(
        output_dir=str(args.folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=args.accumulate,
        num_train_epochs=2,
        max_steps=-1,
        save_steps=7,
        logging_steps=1000,
        report_to=[],
        learning_rate=1e-3,
        use_cpu=True,
        eval_strategy="epoch",
        include_for_metrics=["inputs"],
        deepspeed={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
            "zero_optimization": {"stage": 1},
        },
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, use_cache=False,
        )
    )  # fmt: skip
    loader = ShardLoader(args.dataset, 4, seed=5, sample_keys=True)
    evaluation = ShardLoader(args.dataset, 4, shuffle=False, drop_last=False)
    trainer = KeyTrainer(
        model=model,
        args=arguments,
        train_dataset=loader,
        eval_dataset=evaluation,
        compute_metrics=lambda found: {"tokens": [row[row >= 0].tolist() for row in found.inputs]},
    )
    if args.stop > 0:
        from transformers import TrainerCallback

        stop = args.stop

        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                if state.global_step >= stop:
                    control.should_training_stop = True

        trainer.add_callback(Stop())
    trainer.train(resume_from_checkpoint=True if args.resume else None)
    metrics = trainer.evaluate()
    trainer.save_model(str(args.folder / "model"))
    name = f"rank{arguments.process_index}.json"
    (args.folder / name).write_text(
        json.dumps(
            {
                "keys": trainer.seen_keys,
                "step": trainer.state.global_step,
                "eval_loss": metrics["eval_loss"],
                "eval_tokens": metrics["eval_tokens"],
            }
        )
    )


if __name__ == "__main__":
    main()
