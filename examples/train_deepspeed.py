"""Fine-tune a small Llama on a shardkit dataset with DeepSpeed, ZeRO-1 or ZeRO-2.

    torchrun --standalone --nproc_per_node 2 examples/train_deepspeed.py DATASET
    deepspeed --num_gpus 2 examples/train_deepspeed.py DATASET
    srun --ntasks 2 python examples/train_deepspeed.py DATASET

The model is randomly initialised and tiny, so that this runs on a CPU in seconds; put your own
in `make_model`. Nothing is tokenised, broadcast or waited for when the data is opened.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shardkit import ShardLoader, load_manifest
from shardkit.integrations.deepspeed import slurm_to_env, without_shm_build


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """A Llama of two layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--stage", type=int, default=2, choices=(0, 1, 2, 3), help="of ZeRO")
    parser.add_argument("--batch-size", type=int, default=8, help="of a rank")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="stop after so many, in all")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--checkpoints", help="save here, and go on from here")
    parser.add_argument("--save-every", type=int, default=0, help="steps")
    parser.add_argument("--report", type=Path, help="write what this rank saw as JSON here")
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the deepspeed launcher")
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse()
    slurm_to_env()
    without_shm_build()
    config = {
        "train_micro_batch_size_per_gpu": args.batch_size,
        "optimizer": {"type": "AdamW", "params": {"lr": args.lr, "torch_adam": True}},
        "zero_optimization": {"stage": args.stage},
        "bf16": {"enabled": torch.cuda.is_available()},
        "steps_per_print": 10**9,
    }
    recipe = load_manifest(args.dataset).recipe
    model = make_model(recipe["tokenizer"]["vocab_size"])
    loader = ShardLoader(
        args.dataset,
        args.batch_size,
        seed=args.seed,
        num_workers=args.workers,
        sample_keys=True,
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    step = resume(engine, loader, args)
    report = train(engine, loader, args, step)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / f"rank{engine.global_rank}.json").write_text(json.dumps(report))
    deepspeed.comm.destroy_process_group()  # so that no rank ends with connections still open


def resume(engine: deepspeed.DeepSpeedEngine, loader: ShardLoader, args: argparse.Namespace) -> int:
    """Load the last checkpoint, if there is one; the step to go on from."""
    if not args.checkpoints or not Path(args.checkpoints, "latest").exists():
        return 0
    _, state = engine.load_checkpoint(args.checkpoints)
    loader.load_state_dict(state["loader"])
    return int(state["step"])


def train(
    engine: deepspeed.DeepSpeedEngine, loader: ShardLoader, args: argparse.Namespace, step: int
) -> dict[str, list[object]]:
    """Run to the end; the sample keys and losses that this rank saw."""
    report: dict[str, list[object]] = {"keys": [], "losses": []}
    while loader.epoch < args.epochs:
        for batch in loader:
            loss = engine(**loader.model_inputs(batch, device=engine.device)).loss
            engine.backward(loss)
            engine.step()
            step += 1
            report["keys"].append(batch["keys"])
            report["losses"].append(loss.item())
            if engine.global_rank == 0 and (step % 10 == 0 or step == 1):
                print(f"step {step:4d}  epoch {loader.epoch}  loss {loss.item():.4f}", flush=True)
            if args.checkpoints and args.save_every and step % args.save_every == 0:
                state = {"loader": loader.state_dict(), "step": step}
                engine.save_checkpoint(args.checkpoints, client_state=state)
            if args.steps and step >= args.steps:
                return report
    return report


if __name__ == "__main__":
    main()
