"""shardkit merge: parts that were built apart, or finished datasets, become one dataset."""

from __future__ import annotations

import argparse

from shardkit.errors import UsageError
from shardkit.units import rows_or_share

from . import render
from .options import path, text_parser
from .pack_summary import show_made

DESCRIPTION = """\
Without --out: make one dataset of the parts that `shardkit pack --part I/N`
built into DIR (in the tasks of a Slurm array, say). Run it once, when all tasks
have ended.

With --out: make a new dataset of finished ones that have one recipe (tokenizer,
template, max-length, packing, images). Shards are hard links where that is
possible, and take no space."""

EXAMPLES = """\
examples:
  sbatch --array 1-16 --wrap 'shardkit pack big.jsonl --out big \\
      --tokenizer ./qwen --part $SLURM_ARRAY_TASK_ID/16'
  shardkit merge big

  shardkit merge alpaca sharegpt lima --out all"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `merge`."""
    parser.add_argument(
        "datasets", nargs="+", type=path, metavar="DIR", help="the --out of the parts; or datasets"
    )
    parser.add_argument(
        "-o", "--out", type=path, metavar="DIR", help="a new folder for the datasets"
    )
    parser.add_argument("--copy", action="store_true", help="copy shards instead of linking them")
    parser.add_argument(
        "--max-rejects",
        type=text_parser(rows_or_share),
        metavar="N",
        help="of parts: fail above N rows, or a share as 0.01 or 1%% (default: as they were built)",
    )
    parser.add_argument("--json", action="store_true", help="print the ledger as JSON")
    render.add_progress_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `merge`."""
    from shardkit.builder import merge, merge_datasets

    out = args.out or args.datasets[0]
    if args.out is None:
        if len(args.datasets) > 1 or args.copy:
            raise UsageError(
                "--out is missing", fix="Name a new folder for the datasets: --out DIR."
            )
        manifest = merge(out, max_rejects=args.max_rejects)
    else:
        if args.max_rejects is not None:
            raise UsageError(
                "--max-rejects is for parts: finished datasets have kept theirs",
                fix="Leave it out, or --out where parts were built.",
            )
        with render.meter("merging", args) as meter:
            manifest = merge_datasets(
                args.datasets,
                out,
                copy=args.copy,
                on_shard=lambda done, total: meter.update(done, total, "shards"),
            )
    return show_made(manifest, out, args)
