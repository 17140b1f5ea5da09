"""shardkit merge: commit parts that were built apart."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import render
from .pack_cmd import show_ledger

DESCRIPTION = """\
Make one dataset of the parts that `shardkit pack --part I/N` built into a folder (in the tasks
of a Slurm array, say). Run it once, when all tasks have ended."""

EXAMPLES = """\
examples:
  sbatch --array 1-16 --wrap 'shardkit pack big.jsonl --out big --tokenizer ./qwen \\
      --part $SLURM_ARRAY_TASK_ID/16'
  shardkit merge big"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `merge`."""
    parser.add_argument("out", type=Path, metavar="DIR", help="the --out of the parts")
    parser.add_argument("--json", action="store_true", help="print the ledger as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `merge`."""
    from shardkit.builder.merge import merge

    manifest = merge(args.out)
    if args.json:
        render.print_json({"fingerprint": manifest.fingerprint, "sources": manifest.sources})
        return 0
    show_ledger(manifest)
    n_shards, n_samples = len(manifest.shards), render.number(manifest.n_samples)
    print(f"{args.out}: {n_samples} samples in {n_shards} shards")
    render.note(f"Next: shardkit verify {args.out}")
    return 0
