"""A ZeRO-2 run whose global loss does not depend on how the batch is shared out.

The loss of a rank is the sum over its tokens times the number of ranks over a constant, so that
the mean over ranks, which DeepSpeed takes, is the same for 1, 2 and 4 ranks. Plain SGD has no
state, so weights alone continue a run with another number of ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shardkit import ShardLoader
from shardkit.integrations.deepspeed import without_shm_build

NORMALISER = 400.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--stop-at", type=int, help="a step after which to wait to be killed")
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    without_shm_build()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    loader = ShardLoader(
        args.dataset, args.batch_size, seed=3, rank=rank, world_size=world_size, sample_keys=True
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        config={
            "train_micro_batch_size_per_gpu": args.batch_size,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    step = 0
    if args.resume:
        _, state = engine.load_checkpoint(str(args.resume), load_module_only=True)
        loader.load_state_dict(state["loader"])
        step = state["step"]
    out = args.folder / f"rank{rank}.json"
    report: dict[str, list[object]] = {"steps": [], "keys": [], "losses": []}
    for batch in loader:
        logits = engine(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        total = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )
        engine.backward(total * world_size / NORMALISER)
        engine.step()
        report["steps"].append(step)
        report["keys"].append(batch["keys"])
        report["losses"].append(total.item() / NORMALISER)
        step += 1
        if not args.resume and step % 5 == 0:
            engine.save_checkpoint(
                str(args.folder / "ckpt"),
                client_state={"loader": loader.state_dict(), "step": step},
            )
        if step == args.stop_at:
            (args.folder / f"stopped{rank}").touch()
            time.sleep(900)
    out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
