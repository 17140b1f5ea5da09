"""shardkit card: a dataset card from the manifest."""

from __future__ import annotations

import argparse
import sys

from . import remote
from .options import path, place

DESCRIPTION = """\
Write a dataset card (README.md with the YAML header that the hub reads) from
the manifest: what made the dataset, where every row went, how to load it.
Licence and origin of the sources are yours to state."""

EXAMPLES = """\
examples:
  shardkit card alpaca
  shardkit card alpaca --out alpaca/README.md \\
      --license cc-by-nc-4.0 --language en"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `card`."""
    parser.add_argument("dataset", type=place, metavar="DIR|URL", help=remote.WHERE)
    parser.add_argument(
        "-o", "--out", type=path, metavar="FILE", help="where to write it (default: stdout)"
    )
    add_card_options(parser)
    remote.add_options(parser)


def add_card_options(parser: argparse.ArgumentParser) -> None:
    """Add what a card says that the manifest does not know."""
    parser.add_argument("--title", metavar="TEXT", help="of the card (default: the folder's name)")
    parser.add_argument("--license", metavar="NAME", help="as the hub names it: apache-2.0 ...")
    parser.add_argument(
        "--language",
        dest="languages",
        action="append",
        default=[],
        metavar="CODE",
        help="en, zh ... (again for more)",
    )


def run(args: argparse.Namespace) -> int:
    """Run `card`."""
    from shardkit.format.atomic import appear
    from shardkit.report.card import CardOptions, make_card
    from shardkit.storage.open import path_here

    options = CardOptions(args.title, args.license, args.languages)
    text = make_card(remote.open_dataset(args), options)
    if args.out in (None, "-"):
        sys.stdout.write(text)
        return 0
    with appear(path_here(args.out, "a card")) as file:
        file.write(text.encode())
    print(args.out)
    return 0
