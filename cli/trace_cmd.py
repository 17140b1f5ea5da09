"""shardkit trace: from a step to source rows, and back."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shardkit.errors import UsageError

from . import remote, render

if TYPE_CHECKING:
    from shardkit.report import Origin, Sighting

DESCRIPTION = """\
Say which rows of which source files made the batch of a rank at a step, or at
which step and rank a source row is seen. Computed from the dataset alone: no
log is needed. World size, batch size, seed, epoch, shuffle and lanes must be
those of the run (of its first start: they are in the loader's state)."""

EXAMPLES = """\
examples:
  shardkit trace alpaca --step 340 --rank 3 --world-size 8 \\
      --batch-size 4 --seed 1
  shardkit trace alpaca --row alpaca.json:20431 --world-size 8 \\
      --batch-size 4 --seed 1"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `trace`."""
    parser.add_argument("dataset", metavar="DIR|URL", help=remote.WHERE)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, metavar="S", help="from 0, within the epoch")
    what.add_argument("--row", metavar="FILE:N", help="a source file and a row of it, from 0")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="data-parallel rank")
    parser.add_argument("--world-size", type=int, required=True, metavar="W", help="ranks")
    parser.add_argument("--batch-size", type=int, required=True, metavar="B", help="of a rank")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the run")
    parser.add_argument("--epoch", type=int, default=0, metavar="N", help="from 0")
    parser.add_argument(
        "--shuffle",
        choices=("full", "window", "none"),
        help="of the run (default: full, or window for compressed or remote shards)",
    )
    parser.add_argument("--window", type=int, default=4096, metavar="N", help="of --shuffle window")
    parser.add_argument("--lanes", type=int, metavar="L", help="default: the world size")
    parser.add_argument("--json", action="store_true", help="print JSON")
    remote.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `trace`."""
    from shardkit.report import Topology, find_row, trace_batch

    if min(args.world_size, args.batch_size) < 1:
        raise UsageError("--world-size and --batch-size are from 1", fix="Correct them.")
    dataset = remote.open_dataset(args)
    topology = Topology(
        world_size=args.world_size,
        batch_size=args.batch_size,
        seed=args.seed,
        epoch=args.epoch,
        shuffle=args.shuffle,
        window=args.window,
        lanes=args.lanes,
    )
    if args.row is None:
        found = trace_batch(dataset, topology, step=args.step, rank=args.rank)
        return _print(args, found)
    source, colon, row = args.row.rpartition(":")
    if not colon or not row.isdigit():
        raise UsageError(
            "--row is not FILE:N", found=args.row, fix="Give it as --row alpaca.json:20431."
        )
    seen = find_row(dataset, topology, source=source, row=int(row))
    return _print_sightings(args, seen)


def _print(args: argparse.Namespace, found: list[Origin]) -> int:
    if args.json:
        render.print_json(found)
        return 0
    columns = [("batch row", "right"), ("shard", "left"), ("key", "left"), ("source", "left")]
    columns += [("row", "right"), ("tokens", "right")]
    rows = [
        (o.slot, o.shard, o.key, o.source, o.row, _tokens(o.start, o.length, o.first))
        for o in found
    ]
    render.table(f"step {args.step}, rank {args.rank} of {args.world_size}", columns, rows)
    return 0


def _tokens(start: int, length: int, first: int) -> str:
    text = f"{start}-{start + length - 1}"
    return f"{text} (from {first})" if first else text


def _print_sightings(args: argparse.Namespace, seen: list[Sighting]) -> int:
    if args.json:
        render.print_json(seen)
        return 0
    columns = [("step", "right"), ("rank", "right"), ("batch row", "right"), ("shard", "left")]
    columns += [("key", "left"), ("tokens", "right")]
    rows = [(s.step, s.rank, s.slot, s.shard, s.key, _tokens(s.start, s.length, 0)) for s in seen]
    render.table(f"{args.row}, epoch {args.epoch}", columns, rows)
    return 0
