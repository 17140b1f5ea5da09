"""shardkit export: a dataset for other libraries."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import remote, render
from .card_cmd import add_card_options

DESCRIPTION = """\
Write a dataset in another library's format. `hf`: a folder for
`datasets.load_from_disk`, which is also what XTuner's
`offline_processed_text_folder` reads (input_ids, labels, length, and for packed
data cumulative_len and position_ids). `hub-folder`: card, manifest, shards and
tokenizer in a folder for the hub's own upload."""

EXAMPLES = """\
examples:
  shardkit export alpaca --to hf alpaca-hf
  shardkit export alpaca --to hub-folder alpaca-hub --license cc-by-nc-4.0"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("dataset", metavar="DIR|URL", help=remote.WHERE)
    parser.add_argument("--to", choices=("hf", "hub-folder"), required=True, help="the format")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    add_card_options(parser)
    render.add_progress_options(parser)
    remote.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `export`."""
    if args.to == "hub-folder":
        return _hub_folder(args)
    if not sys.stderr.isatty():
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from shardkit.integrations.hf_export import export_hf

    n = export_hf(args.dataset, args.out, **remote.options(args))
    if not args.quiet:
        print(f"{args.out}: {render.number(n)} rows")
    return 0


def _hub_folder(args: argparse.Namespace) -> int:
    from shardkit.integrations.hub_folder import export_hub_folder
    from shardkit.report.card import CardOptions

    with render.meter("copying", args) as meter:
        n = export_hub_folder(
            args.dataset,
            args.out,
            card=CardOptions(args.title, args.license, args.languages),
            progress=lambda done, total: meter.update(done, total, "shards"),
            **remote.options(args),
        )
    if args.quiet:
        return 0
    print(f"{args.out}: {render.count(n, 'file')}")
    render.note(f"Next: hf upload OWNER/NAME {args.out} --repo-type dataset")
    return 0
