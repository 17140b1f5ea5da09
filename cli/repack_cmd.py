"""shardkit repack: other packs, lengths, order or shards of a finished dataset."""

from __future__ import annotations

import argparse

from shardkit.format.codec import compression_choices
from shardkit.options import check, hints_of
from shardkit.units import rows_or_share

from . import render
from .options import codec, length, natural, path, positive, size, text_parser
from .pack_summary import show_made

DESCRIPTION = """\
Make a dataset of the tokens of finished ones: another --max-length, another
--packing (best-fit over the whole dataset), another row order, other shards. No
source and no tokenizer is needed. Several datasets of one recipe become one.

A longer --max-length is refused when rows were cut or rejected for length: what
is missing of them is not in the dataset. The datasets stay as they are; the new
one takes about as much space, and a killed repack begins again."""

EXAMPLES = """\
examples:
  shardkit repack alpaca --out alpaca-4k --max-length 4096 --packing best-fit
  shardkit repack alpaca sharegpt --out all --packing best-fit
  shardkit repack alpaca --out small --compression zstd --shard-size 256M
  shardkit repack alpaca --out longer --max-length 8192 --truncated drop"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `repack`."""
    from shardkit.tokens.layout import RULES

    parser.add_argument("datasets", nargs="+", type=path, metavar="DIR", help="finished datasets")
    parser.add_argument("-o", "--out", type=path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--max-length",
        type=length,
        metavar="N",
        help="tokens of a row, as 4096 or 4k",
    )
    parser.add_argument("--packing", choices=tuple(RULES), help="how samples share rows")
    parser.add_argument("--shuffle-seed", type=natural, metavar="N", help="shuffle all rows first")
    parser.add_argument("--shard-size", type=size, metavar="SIZE", help="of a shard, as 64M")
    parser.add_argument("--compression", type=codec, metavar="CODEC", help=compression_choices())
    parser.add_argument(
        "--truncated",
        choices=("keep", "drop"),
        help="rows that were cut for length, when --max-length is longer now",
    )
    parser.add_argument(
        "--pad-documents-to-multiple",
        type=positive,
        metavar="N",
        help="pad every document of a pack, for context parallelism: 2 x its ranks",
    )
    parser.add_argument(
        "--max-rejects",
        type=text_parser(rows_or_share),
        default=0.5,
        metavar="N",
        help="fail when over N rows, or over a share below 1, would be left out (default: 0.5)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    parser.add_argument("--json", action="store_true", help="print the ledger as JSON")
    render.add_progress_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `repack`."""
    from shardkit.builder import repack
    from shardkit.dataset import load_manifest

    check("max_rejects", args.max_rejects, hints_of(repack)["max_rejects"])
    n_bytes = sum(shard.n_bytes for path in args.datasets for shard in load_manifest(path).shards)
    if not args.quiet:
        render.note(f"reads {render.size(n_bytes)}, writes about as much to {args.out}")
    with render.meter("repacking", args) as meter:
        manifest = repack(
            args.datasets,
            args.out,
            max_length=args.max_length,
            packing=args.packing,
            shuffle_seed=args.shuffle_seed,
            shard_size=args.shard_size,
            compression=args.compression,
            truncated=args.truncated,
            pad_documents_to_multiple=args.pad_documents_to_multiple,
            max_rejects=args.max_rejects,
            overwrite=args.overwrite,
            on_rows=lambda done, total: meter.update(done, total, "rows"),
        )
    return show_made(manifest, args.out, args)
