"""XTuner 0.2.0's own `xtuner train` on CPU, its own dataset against shardkit's: losses, weights.

    python benchmarks/xtuner_run.py [--work DIR] [--rows 200] [--iterations 10] [--json FILE]

Run it with the Python of an environment that has both. What worked, without a GPU:

    python3.11 -m venv venv && . venv/bin/activate && pip install torch==2.13.0
    pip install mmengine==0.10.6 transformers==4.48.0 datasets peft einops scikit-image \
        opencv-python-headless accelerate sentencepiece && pip install --no-deps xtuner==0.2.0
    pip install --no-deps torchvision && pip install --no-deps shardkit
    pip install msgspec xxhash zstandard fsspec jinja2 rich

Alpaca rows, packed and not, one process. Two things that XTuner asks of a GPU are answered by a
sitecustomize.py that is put on PYTHONPATH. `xtuner train` exits with 0 when training failed: what
counts is what it wrote.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE, MAX_LENGTH = "qwen_chat", 128
SITE = """
import sys, types
import torch
torch.cpu.is_bf16_supported = lambda: False
if not torch.cuda.is_available():
    torch.cuda.set_device = lambda device: None
    for name in ("_meta_registrations", "_autograd_registrations"):  # of a build for GPUs
        sys.modules.setdefault("torchvision." + name, types.ModuleType("torchvision." + name))
"""
CONFIG = """
from datasets import load_dataset
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import LinearLR, OptimWrapper
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer
from xtuner.dataset import process_hf_dataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import alpaca_map_fn, template_map_fn_factory
from xtuner.engine.runner import TrainLoop
from xtuner.model import SupervisedFinetune
from xtuner.utils import PROMPT_TEMPLATE
{imports}
tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path={model!r},
                 padding_side="right")
model = dict(type=SupervisedFinetune, use_varlen_attn=False,
             llm=dict(type=AutoModelForCausalLM.from_pretrained,
                      pretrained_model_name_or_path={model!r}))
template, max_length = PROMPT_TEMPLATE.{template}, {max_length}
train_dataset = {dataset}
train_dataloader = dict(
    batch_size={batch}, num_workers=0, dataset=train_dataset,
    sampler=dict(type=DefaultSampler, shuffle={shuffle}),
    collate_fn=dict(type=default_collate_fn, use_varlen_attn=False))
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-2))
param_scheduler = [dict(type=LinearLR, start_factor=1e-5, by_epoch=False, begin=0, end=3)]
train_cfg = dict(type=TrainLoop, max_iters={iterations})
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval={iterations}))
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend="gloo"),
               mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
visualizer, load_from, resume, log_level = None, None, False, "INFO"
randomness = dict(seed=0, deterministic=False)
log_processor = dict(by_epoch=False)
"""
OWN = """dict(
    type=process_hf_dataset, dataset=dict(type=load_dataset, path="json", data_files={rows!r}),
    tokenizer=tokenizer, max_length=max_length, dataset_map_fn=alpaca_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=template),
    remove_unused_columns=True, shuffle_before_pack=False, map_num_proc=1,
    pack_to_max_length={packed}, use_varlen_attn=False)"""
OURS = """dict(
    type=XTunerDataset, path={path!r}, tokenizer=tokenizer, template=template,
    max_length=max_length)"""


def write_inputs(work: Path, n_rows: int) -> tuple[Path, Path]:
    """Alpaca rows of made-up words, and a tiny Llama with our small tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words, rng = (
        [
            "river",
            "lamp",
            "window",
            "garden",
            "paper",
            "stone",
            "letter",
            "cloud",
            "bridge",
            "song",
        ],
        random.Random(0),
    )
    rows = [
        {
            "instruction": f"Task {i}: {' '.join(rng.choices(words, k=rng.randrange(1, 9)))}",
            "input": "",
            "output": " ".join(rng.choices(words, k=rng.randrange(1, 20))),
        }
        for i in range(n_rows)
    ]
    (work / "rows.json").write_text(json.dumps(rows))
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tests/data/tokenizer")
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    return work / "rows.json", work / "model"


def train(work: Path, name: str, config: str) -> Path:
    """Run `xtuner train`; the folder that it wrote."""
    (work / "site").mkdir(exist_ok=True)
    (work / "site/sitecustomize.py").write_text(SITE)
    (work / f"{name}.py").write_text(config)
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{work / 'site'}:{ROOT}",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(work / "hf"),
    }  # fmt: skip
    out = work / name
    command = ["xtuner", "train", str(work / f"{name}.py"), "--work-dir", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=work)
    (work / f"{name}.log").write_text(done.stdout + done.stderr)
    if not (out / "last_checkpoint").is_file():
        raise SystemExit(f"{name}: XTuner did not finish\n{(done.stdout + done.stderr)[-3000:]}")
    return out


def losses_of(out: Path) -> list[float]:
    """The loss of every iteration."""
    (log,) = out.glob("*/vis_data/scalars.json")
    lines = map(json.loads, log.read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def same_weights(one: Path, two: Path) -> bool:
    """Whether the final weights are equal to the bit."""
    import torch

    first, second = (
        torch.load((out / "last_checkpoint").read_text().strip(), weights_only=False)["state_dict"]
        for out in (one, two)
    )
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def compare(
    work: Path, rows: Path, model: Path, packed: bool, iterations: int
) -> dict[str, object]:
    """One pair of runs."""
    from shardkit import pack

    kind = "packed" if packed else "rows"
    pack(
        rows, work / kind, tokenizer=model, template=TEMPLATE, max_length=MAX_LENGTH,
        packing="concat" if packed else "none",
    )  # fmt: skip
    shared = {
        "model": str(model), "template": TEMPLATE, "max_length": MAX_LENGTH, "batch": 4,
        "shuffle": False, "iterations": iterations,
    }  # fmt: skip
    own = OWN.format(rows=str(rows), packed=packed)
    ours = OURS.format(path=str(work / kind))
    imports = "from shardkit.integrations.xtuner import XTunerDataset"
    one = train(work, f"{kind}-own", CONFIG.format(imports="", dataset=own, **shared))
    two = train(work, f"{kind}-ours", CONFIG.format(imports=imports, dataset=ours, **shared))
    dumped = (two / f"{kind}-ours.py").read_text()
    again = train(work, f"{kind}-dumped", dumped)
    losses = [losses_of(out) for out in (one, two, again)]
    return {
        "run": f"Alpaca, {kind}, 1 process",
        "iterations": len(losses[0]),
        "losses_equal": losses[0] == losses[1] and len(losses[0]) == iterations,
        "weights_equal": same_weights(one, two),
        "dumped_config_equal": losses[1] == losses[2],
        "last_loss": losses[0][-1],
    }


def main() -> None:
    """Run the pairs and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--only", choices=("rows", "packed"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if importlib.util.find_spec("xtuner") is None:
        raise SystemExit("XTuner is not installed in this environment; see the top of this file")
    exec(SITE, {})  # here too, before transformers is imported
    work = args.work or Path(tempfile.mkdtemp(prefix="xtuner-run-"))
    work.mkdir(parents=True, exist_ok=True)
    rows, model = write_inputs(work, args.rows)
    found = [
        compare(work, rows, model, packed, args.iterations)
        for packed in (False, True)
        if args.only in (None, "packed" if packed else "rows")
    ]
    print("| run | iterations | losses equal | weights equal | from the dumped config |")
    print("|---|--:|---|---|---|")
    for one in found:
        names = ("losses_equal", "weights_equal", "dumped_config_equal")
        print(
            f"| {one['run']} | {one['iterations']} | "
            + " | ".join(str(one[n]) for n in names)
            + " |"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    raise SystemExit(0 if all(one[n] for one in found for n in names) else 1)


if __name__ == "__main__":
    main()
