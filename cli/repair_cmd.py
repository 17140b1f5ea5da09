"""shardkit repair: damaged shards again, from the source."""

from __future__ import annotations

import argparse

from . import render
from .options import add_sources, count_or_auto, path, place

DESCRIPTION = """\
Find the shards that are missing or damaged and build only these again from the
source files. A shard is replaced only when it comes out byte for byte as the
manifest says."""

EXAMPLES = """\
examples:
  shardkit repair alpaca --source alpaca.json
  shardkit repair llava --source llava.json --image-root images"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `repair`."""
    parser.add_argument("dataset", type=path, metavar="DIR", help="the dataset")
    parser.add_argument(
        "--source",
        nargs="+",
        type=place,
        required=True,
        metavar="FILE",
        help="all files that were packed",
    )
    add_sources(parser)
    parser.add_argument(
        "--workers", type=count_or_auto, default="auto", metavar="N", help="for the check"
    )
    render.add_progress_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `repair`."""
    from shardkit.builder.repair import clear_repair, repair
    from shardkit.check import verify
    from shardkit.storage.open import path_here

    here = path_here(args.dataset, "a dataset to repair")
    with render.meter("checking", args) as meter:
        damaged = verify(
            args.dataset, workers=args.workers, on_shard=render.adding(meter)
        ).damaged_shards
    if not damaged:
        clear_repair(here)
        if args.quiet:
            return 0
        print(f"{args.dataset}: no shard is damaged")
        return 0
    if not args.quiet:
        more = " ..." if len(damaged) > 10 else ""
        print(f"{len(damaged)} damaged: {', '.join(damaged[:10])}{more}")
    with render.meter("repairing", args) as meter:
        mended = repair(
            args.dataset,
            damaged,
            args.source,
            image_root=args.image_root,
            tokenizer=args.tokenizer,
            processor=args.processor,
            on_part=lambda done, total: meter.update(done, total, "parts"),
        )
    if not args.quiet:
        are = "is" if len(mended) == 1 else "are"
        print(f"{render.count(len(mended), 'shard')} {are} whole again")
    with render.meter("checking again", args) as meter:
        left = verify(args.dataset, workers=args.workers, on_shard=render.adding(meter)).problems
    for finding in left[:10]:
        render.note(f"still wrong: {finding.place()} {finding.message}")
    return 1 if left else 0
