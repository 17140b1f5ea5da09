"""LLaMA-Factory's own training on CPU over exported rows: its batches, labels and logits.

    python benchmarks/llamafactory_run.py DATASET [--attention sdpa] [--json FILE]

Run it with the Python of an environment that has both. What worked: shardkit's environment, and
llamafactory 0.9.5, peft 0.18, trl 0.24, omegaconf, tyro and torchaudio in a folder that is first
on PYTHONPATH (pip install --no-deps --target). LLaMA-Factory pins older versions than were there:
its check is turned off here, and so is gradient checkpointing, which fails with transformers 5.24.
Where torchaudio's native library does not load (a build for CUDA), its import has to be made
harmless first.

One epoch of `run_sft` at a learning rate of 0, so that the weights stay. What its model is called
with is compared with the rows of the dataset; its logits with those of each document alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)

from shardkit import ShardTable
from shardkit.dataset import open_dataset
from shardkit.integrations.llamafactory import export_llamafactory

Call = dict[str, Any]


class Watch(TrainerCallback):
    """Keeps what the model is called with, and its logits."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.model: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.model = more["model"]
        self._hook = self.model.register_forward_hook(self._keep, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._hook.remove()

    def _keep(self, module: Any, args: Any, inputs: Call, output: Any) -> None:
        self.calls.append({**inputs, "logits": output.logits.detach()})


def train(dataset: str, folder: Path, attention: str, is_packed: bool) -> Watch:
    """One epoch of LLaMA-Factory's own sft stage."""
    from llamafactory.hparams import get_train_args
    from llamafactory.train.sft import run_sft

    tokenizer = AutoTokenizer.from_pretrained(Path(dataset) / "tokenizer")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    export_llamafactory(dataset, folder / "rows")
    arguments: dict[str, Any] = {
        "stage": "sft", "do_train": True, "model_name_or_path": str(folder / "model"),
        "finetuning_type": "full", "tokenized_path": str(folder / "rows"), "dataset": "none",
        "template": "default", "output_dir": str(folder / "out"), "report_to": "none",
        "per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 0.0,
        "use_cpu": True, "save_strategy": "no", "disable_gradient_checkpointing": True,
        "flash_attn": attention, "packing": is_packed, "neat_packing": is_packed,
        "disable_tqdm": True,
    }  # fmt: skip
    watch = Watch()
    run_sft(*get_train_args(arguments), callbacks=[watch])
    return watch


def compared(dataset: str, watch: Watch) -> dict[str, object]:
    """What it trained on against the rows of the dataset."""
    table = ShardTable(dataset)
    rows = [table[i] for i in range(len(table))]
    number_of = {tuple(row["input_ids"].tolist()): i for i, row in enumerate(rows)}
    seen: list[int] = []
    n_wrong, difference = 0, 0.0
    for call in watch.calls:
        for k, mask in enumerate(real_tokens(call)):
            seen.append(number_of[tuple(call["input_ids"][k][mask].tolist())])
            row = rows[seen[-1]]
            labels = row["labels"].clone()
            for begin, end in documents_of(row):
                labels[begin] = -100  # the shift leaves it out, in a pack too
                found = call["logits"][k, begin:end]
                with torch.no_grad():
                    alone = watch.model(input_ids=row["input_ids"][None, begin:end]).logits[0]
                difference = max(difference, float((found - alone).abs().max()))
            expected = torch.full_like(call["labels"][k], -100)
            expected[: len(labels)] = labels
            n_wrong += int((call["labels"][k][1:] != expected[1:]).sum())
    return {
        "rows": f"{len(set(seen))} of {len(rows)}",
        "each_once": sorted(seen) == list(range(len(rows))),
        "wrong_labels": n_wrong,
        "logits_difference": difference,
    }


def real_tokens(call: Call) -> torch.Tensor:
    """Bool (B, T), from the mask that LLaMA-Factory's collator made: (B, T), or (B, 1, T, T)."""
    mask: torch.Tensor = call["attention_mask"]
    if mask.dim() == 2:
        return mask != 0
    return mask[:, 0].diagonal(dim1=1, dim2=2) == 0  # a token attends to itself


def documents_of(row: dict[str, Any]) -> list[tuple[int, int]]:
    """Begin and end of each document of a row."""
    begins = row["position_ids"].eq(0).nonzero()[:, 0].tolist() if "position_ids" in row else [0]
    return [*pairwise([*begins, len(row["labels"])])]


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--attention", choices=("sdpa", "disabled"), default="sdpa")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    is_packed = open_dataset(args.dataset).manifest.is_packed
    with tempfile.TemporaryDirectory() as given:
        found = compared(args.dataset, train(args.dataset, Path(given), args.attention, is_packed))
    print(json.dumps({"packed": is_packed, "attention": args.attention, **found}))
    if args.json:
        args.json.write_text(json.dumps(found))
    sys.exit(0 if found["each_once"] and not found["wrong_labels"] else 1)


if __name__ == "__main__":
    main()
