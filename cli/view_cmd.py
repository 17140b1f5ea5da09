"""shardkit view: look through a whole dataset in a browser."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from . import remote
from .options import natural, path, place

DESCRIPTION = """\
Serve a dataset's pages to a browser on this machine: all samples with filters
and search, one sample by SHARD/KEY, number or FILE:ROW, rejected rows beside
their source, the figures of `report`, and two samples or datasets side by side.
Nothing is loaded but what a page shows. The address holds a token for one
browser; Ctrl-C ends it."""

EXAMPLES = """\
examples:
  shardkit view alpaca
  shardkit view alpaca --source alpaca.json
  shardkit view alpaca --compare alpaca-old --port 8080"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `view`."""
    parser.add_argument("dataset", type=place, metavar="DIR|URL", help=remote.WHERE)
    parser.add_argument(
        "--source",
        dest="sources",
        action="append",
        type=path,
        default=[],
        metavar="FILE",
        help="an input file, to show rows as they were (again for more)",
    )
    parser.add_argument("--compare", type=place, metavar="DIR|URL", help="a second dataset")
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="on 127.0.0.1 (default: a free one)"
    )
    remote.add_options(parser)


def _port(text: str) -> int:
    number = natural(text)
    if number >= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 65535")
    return number


def run(args: argparse.Namespace) -> int:
    """Run `view`."""
    from shardkit.dataset import open_dataset
    from shardkit.report.live.serve import serve

    dataset = remote.open_dataset(args)
    other = open_dataset(args.compare, **remote.options(args)) if args.compare else None
    with suppress(KeyboardInterrupt):
        serve(
            dataset,
            other=other,
            sources=args.sources,
            port=args.port,
            on_ready=lambda address: print(f"Open {address}", flush=True),
        )
    print("shardkit: view ended", file=sys.stderr)
    return 0
