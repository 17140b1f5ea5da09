"""shardkit report: a dataset as one HTML page to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import remote, render
from .options import path, place, positive

DESCRIPTION = """\
Write one HTML file that shows what a dataset is and holds: where every row
went, lengths, pictures, and samples with the loss mask over their text. It
needs no network and no server. It holds training data: share it as you share
that."""

EXAMPLES = """\
examples:
  shardkit report alpaca
  shardkit report llava --out llava.html --samples 100
  shardkit report s3://bucket/chats --no-text --no-images"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("dataset", type=place, metavar="DIR|URL", help=remote.WHERE)
    parser.add_argument(
        "-o",
        "--out",
        type=path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )
    parser.add_argument(
        "--samples", type=positive, default=40, metavar="N", help="how many to show (default: 40)"
    )
    parser.add_argument(
        "--shards",
        type=positive,
        metavar="N",
        help="whose indexes are read (default: all; of a URL 8)",
    )
    parser.add_argument("--no-text", action="store_true", help="leave out the text of samples")
    parser.add_argument("--no-images", action="store_true", help="leave out the pictures")
    render.add_progress_options(parser)
    remote.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `report`."""
    from shardkit.report.page import ReportOptions, write_report

    dataset = remote.open_dataset(args)
    options = ReportOptions(
        samples=args.samples, text=not args.no_text, images=not args.no_images, shards=args.shards
    )
    with render.meter("indexes", args) as meter:
        n_bytes = write_report(
            dataset,
            args.out,
            options,
            progress=lambda done, total: meter.update(done, total, "shards"),
        )
    if not args.quiet:
        print(f"{args.out}: {render.size(n_bytes)}")
    return 0
