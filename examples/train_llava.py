"""Train a small LLaVA on a shardkit dataset with DeepSpeed ZeRO-2.

    torchrun --standalone --nproc_per_node 2 examples/train_llava.py DATASET

The model is randomly initialised and tiny (CLIP vision tower and Llama of two layers each), so
that this runs on a CPU in seconds. A batch of texts alone gets one black image that nothing
attends to: without it ZeRO-1 and 3 crash and ZeRO-2 gives wrong gradients as soon as one rank's
batch has images and another's has none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import deepspeed
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from shardkit import ShardLoader, load_manifest
from shardkit.images import ImageTransform
from shardkit.integrations.deepspeed import slurm_to_env, without_shm_build

PATCH = 8
IMAGE_TOKENS = 16
"""Of an image, unless the dataset was packed for another number; a square number."""


def image_size(n_tokens: int) -> int:
    """Width and height of a picture that makes so many tokens."""
    return PATCH * math.isqrt(n_tokens)


def make_model(vocab_size: int, n_tokens: int = IMAGE_TOKENS) -> LlavaForConditionalGeneration:
    """A LLaVA whose image token is the one after the vocabulary."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size(n_tokens),
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=vocab_size + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        use_cache=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocab_size,
        image_seq_length=n_tokens,
    )
    return LlavaForConditionalGeneration(config)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--stage", type=int, default=2, choices=(0, 1, 2, 3), help="of ZeRO")
    parser.add_argument("--batch-size", type=int, default=4, help="of a rank")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--image-pad", default="always-one", choices=("always-one", "none"))
    parser.add_argument("--report", type=Path, help="write what this rank saw as JSON here")
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the deepspeed launcher")
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse()
    slurm_to_env()
    without_shm_build()
    recipe = load_manifest(args.dataset).recipe
    vocab_size = recipe["tokenizer"]["vocab_size"]
    counted = recipe["images"]["image_tokens"]
    n_tokens = counted if counted > 1 else IMAGE_TOKENS
    model = make_model(vocab_size, n_tokens)
    loader = ShardLoader(
        args.dataset,
        args.batch_size,
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        image_transform=ImageTransform(image_size(n_tokens), "pad"),
        expand_image_tokens=n_tokens,
        image_token_id=vocab_size,
        image_pad=args.image_pad,
        sample_keys=True,
    )
    config = {
        "train_micro_batch_size_per_gpu": args.batch_size,
        "optimizer": {"type": "AdamW", "params": {"lr": args.lr, "torch_adam": True}},
        "zero_optimization": {"stage": args.stage},
        "bf16": {"enabled": torch.cuda.is_available()},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    report: dict[str, list[object]] = {"keys": [], "losses": []}
    dtype = next(engine.parameters()).dtype
    step = 0
    for _ in range(args.epochs):
        for batch in loader:
            inputs = loader.model_inputs(batch, device=engine.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
            loss = engine(**inputs).loss
            engine.backward(loss)
            engine.step()
            step += 1
            report["keys"].append(batch["keys"])
            report["losses"].append(loss.item())
            if engine.global_rank == 0 and (step % 10 == 0 or step == 1):
                print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / f"rank{engine.global_rank}.json").write_text(json.dumps(report))
    deepspeed.comm.destroy_process_group()  # so that no rank ends with connections still open


if __name__ == "__main__":
    main()
