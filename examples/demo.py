"""The main job on bundled data: pack → verify → inspect → train on 2 ranks, text and images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
TOKENIZER = HERE.parent / "tests" / "data" / "tokenizer"
OUT = HERE.parent / "demo-out"
BIN = Path(sys.executable).parent


def run(*command: object) -> None:
    """Show a command and run it; stop when it fails."""
    words = [os.path.relpath(word) if isinstance(word, Path) else str(word) for word in command]
    print(f"\n$ {' '.join(words)}", flush=True)
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "DEEPSPEED_LOG_LEVEL": "error",
        "LOGLEVEL": "ERROR",
    }
    program = BIN / words[0]
    done = subprocess.run(
        [str(program), *words[1:]], env=environment, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stderr[-4000:]}\n{words[0]} failed with status {done.returncode}")
    notes = [
        line for line in done.stderr.splitlines() if line.startswith(("Next:", "Rejected", "(loss"))
    ]
    print("\n".join(notes), flush=True)


def train(script: str, dataset: Path, *options: object) -> None:
    """Train on two ranks and say how the loss fell."""
    report = OUT / f"report-{dataset.name}"
    launch = ("torchrun", "--standalone", "--nproc_per_node", 2)
    run(*launch, HERE / script, dataset, "--report", report, *options)
    ranks = [json.loads((report / f"rank{rank}.json").read_text()) for rank in range(2)]
    losses = [sum(step) / 2 for step in zip(*(rank["losses"] for rank in ranks), strict=True)]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    print(f"loss {first:.3f} -> {last:.3f} in {len(losses)} steps on 2 ranks")
    if not last < first:
        sys.exit("the loss did not fall")


def main() -> None:
    """Run the demo."""
    os.chdir(HERE.parent)
    begun = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    text, chats, images = OUT / "text", OUT / "chats", OUT / "llava"
    tokens = ("--tokenizer", TOKENIZER, "--template", "qwen_chat", "--max-length", 256)
    run("shardkit", "pack", DATA / "alpaca.json", "--out", text, *tokens)
    run("shardkit", "verify", text, "--source", DATA / "alpaca.json")
    run("shardkit", "inspect", text)
    run("shardkit", "inspect", text, "--sample", 0)
    train("train_deepspeed.py", text, "--epochs", 3)
    run("shardkit", "pack", DATA / "chats.jsonl", "--out", chats, "--tokenizer", TOKENIZER,
        "--template", "tokenizer", "--max-length", 256, "--packing", "best-fit")  # fmt: skip
    run("shardkit", "verify", chats)
    run("shardkit", "inspect", chats, "--sample", 0)
    run("shardkit", "pack", DATA / "llava.json", "--image-root", DATA / "images",
        "--image-tokens", 16, "--out", images, *tokens)  # fmt: skip
    run("shardkit", "verify", images)
    run("shardkit", "inspect", images, "--sample", 7)
    train("train_llava.py", images, "--epochs", 3)
    print(f"\nThe demo took {time.monotonic() - begun:.0f} s; the datasets are in {OUT.name}/.")


if __name__ == "__main__":
    main()
