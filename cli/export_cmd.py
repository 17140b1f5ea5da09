"""shardkit export: a dataset for other libraries."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import remote, render

DESCRIPTION = """\
Write a dataset in another library's format. `hf`: a folder for
`datasets.load_from_disk`, which is also what XTuner's
`offline_processed_text_folder` reads (input_ids, labels, length, and for packed
data cumulative_len and position_ids)."""

EXAMPLES = """\
examples:
  shardkit export alpaca --to hf alpaca-hf"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("dataset", metavar="DIR|URL", help=remote.WHERE)
    parser.add_argument("--to", choices=("hf",), required=True, help="the format")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    remote.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `export`."""
    if not sys.stderr.isatty():
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from shardkit.integrations.hf_export import export_hf

    n = export_hf(args.dataset, args.out, **remote.options(args))
    print(f"{args.out}: {render.number(n)} rows")
    return 0
