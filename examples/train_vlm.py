"""Train a small Qwen2.5-VL on packed rows with pictures, with DeepSpeed ZeRO-2.

    python examples/train_vlm.py --make-processor PROC --tokenizer tests/data/tokenizer
    shardkit pack examples/data/llava.json --out DATASET --image-root examples/data/images \\
        --processor PROC --packing best-fit --max-length 256
    torchrun --standalone --nproc_per_node 2 examples/train_vlm.py DATASET --processor PROC

The model is randomly initialised and tiny, so that this runs on a CPU. With real weights, PROC is
the model's own folder and `--model` names it; nothing else changes, whatever the family is. A
batch without pictures gets one dummy document (`image_pad`): without it ZeRO-1 and 3 crash and
ZeRO-2 gives wrong gradients as soon as one rank's batch has pictures and another's has none.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import deepspeed
import torch
import transformers

from shardkit import ShardLoader
from shardkit.integrations.deepspeed import slurm_to_env, without_shm_build
from shardkit.processors import load_processor
from shardkit.processors.transformers_door import without_videos

PATCH = 14
WRAPPED = "<|vision_start|><|image_pad|><|vision_end|>"
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{%- generation %}"
    "{{- message.content + '<|im_end|>' }}{%- endgeneration %}"
    "{%- elif message.content is string %}{{- message.content + '<|im_end|>' }}"
    "{%- else %}{%- for part in message.content %}"
    "{{- '" + WRAPPED + "' if part.type == 'image' else part.text }}"
    "{%- endfor %}{{- '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def make_processor(tokenizer: Path, out: Path) -> None:
    """A Qwen2.5-VL processor for small pictures around any tokenizer, as a folder."""
    made: Any = transformers.AutoTokenizer.from_pretrained(tokenizer)
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    made.add_tokens(list(names), special_tokens=True)
    images = transformers.Qwen2VLImageProcessorPil(
        min_pixels=4 * (2 * PATCH) ** 2, max_pixels=16 * (2 * PATCH) ** 2
    )
    cls = without_videos(transformers.Qwen2_5_VLProcessor)
    cls(images, made, chat_template=TEMPLATE).save_pretrained(out)


def make_model(processor: Any) -> Any:
    """A tiny Qwen2.5-VL for a processor of this class."""
    torch.manual_seed(0)
    token = processor.tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 64,
        "patch_size": PATCH,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    }
    config: Any = transformers.Qwen2_5_VLConfig
    return transformers.Qwen2_5_VLForConditionalGeneration(
        config(
            text_config=text,
            vision_config=vision,
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
        )
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--processor", help="what the dataset was packed with")
    parser.add_argument("--model", help="a folder or hub name; default: a tiny Qwen2.5-VL")
    parser.add_argument("--make-processor", type=Path, metavar="DIR", help="write one, and end")
    parser.add_argument("--tokenizer", type=Path, help="for --make-processor")
    parser.add_argument("--batch-size", type=int, default=2, help="packs of a rank")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--report", type=Path, help="write what this rank saw as JSON here")
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the deepspeed launcher")
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse()
    if args.make_processor:
        make_processor(args.tokenizer, args.make_processor)
        return
    slurm_to_env()
    without_shm_build()
    auto: Any = transformers.AutoModelForImageTextToText
    processor = load_processor(args.processor)
    model = auto.from_pretrained(args.model) if args.model else make_model(processor.real)
    loader = ShardLoader(
        args.dataset,
        args.batch_size,
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        processor=processor,
        image_pad="always-one",
        sample_keys=True,
    )
    config = {
        "train_micro_batch_size_per_gpu": args.batch_size,
        "optimizer": {"type": "AdamW", "params": {"lr": args.lr, "torch_adam": True}},
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": torch.cuda.is_available()},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    report: dict[str, list[object]] = {"keys": [], "losses": []}
    dtype = next(engine.parameters()).dtype
    for epoch in range(args.epochs):
        for batch in loader:
            inputs = loader.model_inputs(batch, device=engine.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
            loss = engine(**inputs).loss
            engine.backward(loss)
            engine.step()
            report["keys"].append(batch["keys"] if epoch == 0 else [])
            report["losses"].append(loss.item())
        if engine.global_rank == 0:
            print(f"epoch {epoch}  loss {report['losses'][-1]:.4f}", flush=True)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / f"rank{engine.global_rank}.json").write_text(json.dumps(report))
    deepspeed.comm.destroy_process_group()  # so that no rank ends with connections still open


if __name__ == "__main__":
    main()
