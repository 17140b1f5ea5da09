"""Training loops over one packed dataset: keys, losses, weights and resume against one big batch.

    python benchmarks/loops.py DATASET [--only NAME ...] [--json FILE]

A tiny Llama on CPU ranks (gloo), fp32, plain SGD. Every framework makes the same optimizer steps,
of 2 ranks x 2 batches x 2 rows; the reference is one process that sums up the loss of all rows of
a step. Each then goes on, from a checkpoint in the middle, with new objects.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

FRAMEWORKS = {
    "DDP, plain loop": ("torch", "ddp"),
    "DDP, plain loop, 4 ranks": ("torch", "ddp"),
    "FSDP2": ("torch", "fsdp2"),
    "Accelerate": ("accelerate", "accelerate"),
    "DeepSpeed ZeRO-1": ("deepspeed", "zero1"),
    "DeepSpeed ZeRO-2": ("deepspeed", "zero2"),
    "DeepSpeed ZeRO-3": ("deepspeed", "zero3"),
    "Lightning, DDP": ("lightning", "lightning"),
    "Transformers' Trainer": ("transformers", "trainer"),
    "TRL's SFTTrainer": ("trl", "trl"),
}
"""What is run: the package that it needs, and the name in loops_child.py."""


def launch(name: str, dataset: str, folder: Path, n_ranks: int) -> str | None:
    """Run one framework on some ranks; the end of what it said when it failed."""
    child = Path(__file__).parent / "loops_child.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={n_ranks}", str(child), name, dataset, str(folder)]
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr[-3000:]


def compared(name: str, dataset: str, title: str) -> dict[str, object]:
    """One row of the table."""
    from loops_child import BATCH, STEPS, difference, reference

    n_ranks = 4 if title.endswith("4 ranks") else 2
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        failure = launch(name, dataset, folder, n_ranks)
        if failure is not None:
            print(failure, file=sys.stderr)
            said = [line for line in failure.splitlines() if "Error" in line]
            return {"loop": title, "failed": (said or ["it ended"])[-1][-120:]}
        ranks = [json.loads((folder / f"rank{i}.json").read_text()) for i in range(n_ranks)]
        expected = reference(dataset, n_ranks, ranks[0]["accumulation"])
        whole, rest = ranks[0]["whole"], ranks[0]["rest"]
        keys = [rank["whole"]["keys"] for rank in ranks]
        done = len(whole["keys"]) - len(rest["keys"])
        return {
            "loop": title,
            "ranks": n_ranks,
            "accumulation": ranks[0]["accumulation"],
            "steps": STEPS,
            "rows": STEPS * n_ranks * ranks[0]["accumulation"] * BATCH,
            "keys_equal": keys == expected["keys"],
            "loss_difference": difference(whole["losses"], expected["losses"]),
            "weight_difference": difference(whole["weights"], expected["weights"]),
            "resumed_keys_equal": all(
                rank["rest"]["keys"] == rank["whole"]["keys"][done:] for rank in ranks
            ),
            "resumed_weight_difference": difference(rest["weights"], whole["weights"]),
        }


def table(rows: list[dict[str, object]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| loop | ranks x accumulation | keys | losses | weights | resumed: keys, weights |",
        "|---|---|---|--:|--:|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['loop']} | not run: {row['failed']} | | | | |")
            continue
        words = {True: "equal", False: "**differ**"}
        lines.append(
            f"| {row['loop']} | {row['ranks']} x {row['accumulation']} "
            f"| {words[bool(row['keys_equal'])]} | {row['loss_difference']:.0e} "
            f"| {row['weight_difference']:.0e} | {words[bool(row['resumed_keys_equal'])]}, "
            f"{row['resumed_weight_difference']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run them and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--only", nargs="+", choices=[*FRAMEWORKS], default=[*FRAMEWORKS])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for title in args.only:
        package, name = FRAMEWORKS[title]
        if importlib.util.find_spec(package) is None:
            rows.append({"loop": title, "failed": f"{package} is not installed"})
        else:
            rows.append(compared(name, args.dataset, title))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
