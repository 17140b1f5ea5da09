"""shardkit export: a dataset for other libraries."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable

from shardkit.errors import UsageError

from . import remote, render
from .card_cmd import add_card_options
from .options import path, place

DESCRIPTION = """\
Write a dataset in another library's format. `hf`: a folder for
`datasets.load_from_disk`, which is also what XTuner's
`offline_processed_text_folder` reads (input_ids, labels, length, and for packed
data cumulative_len and position_ids). `jsonl`: the same rows as a file of JSON
lines. `llamafactory`: a folder for LLaMA-Factory's `tokenized_path`.
`hub-folder`: card, manifest, shards and tokenizer in a folder for the hub's own
upload."""

EXAMPLES = """\
examples:
  shardkit export alpaca --to hf alpaca-hf
  shardkit export alpaca --to jsonl alpaca-ids.jsonl
  shardkit export alpaca --to llamafactory alpaca-lf
  shardkit export alpaca --to hub-folder alpaca-hub --license cc-by-nc-4.0"""

IS_MIXED = True
"""OUT may stand after options, or be left out for --out."""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("dataset", type=place, metavar="DIR|URL", help=remote.WHERE)
    parser.add_argument(
        "--to",
        choices=("hf", "jsonl", "llamafactory", "hub-folder"),
        required=True,
        help="the format",
    )
    parser.add_argument("out", nargs="?", type=path, metavar="OUT", help="a new folder, or file")
    parser.add_argument(
        "-o", "--out", dest="named_out", type=path, metavar="OUT", help="the same, by name"
    )
    add_card_options(parser)
    render.add_progress_options(parser)
    remote.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `export`."""
    if (args.out is None) == (args.named_out is None):
        raise UsageError(
            "name one OUT", fix="Give a new folder or file after the dataset, or with --out."
        )
    args.out = args.out or args.named_out
    if args.to == "hub-folder":
        return _hub_folder(args)
    if args.title is not None or args.license is not None or args.languages:
        raise UsageError(
            "--title, --license and --language are of a card",
            found=f"--to {args.to}",
            fix="Leave them out, or give --to hub-folder.",
        )
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # the bar is ours
    with render.meter("exporting", args) as meter:
        n = _export_of(args.to)(
            args.dataset,
            args.out,
            progress=lambda done, total: meter.update(done, total, "rows"),
            **remote.options(args),
        )
    if not args.quiet:
        print(f"{args.out}: {render.number(n)} rows")
    return 0


def _export_of(kind: str) -> Callable[..., int]:
    if kind == "jsonl":
        from shardkit.integrations.jsonl_export import export_jsonl

        return export_jsonl
    if kind == "llamafactory":
        from shardkit.integrations.llamafactory import export_llamafactory

        return export_llamafactory
    from shardkit.integrations.hf_export import export_hf

    return export_hf


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
    render.note(f"Next: hf upload OWNER/NAME {shlex.quote(str(args.out))} --repo-type dataset")
    return 0
