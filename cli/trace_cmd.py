"""shardkit trace: from a step to source rows, and back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.errors import UsageError

from . import remote, render
from .options import natural, path, place, positive, share

if TYPE_CHECKING:
    from shardkit.dataset import Dataset
    from shardkit.report import Mixture, Origin, Sighting, Topology

DESCRIPTION = """\
Say which rows of which source files made the batch of a rank at a step, or at
which step and rank a source row is seen. Computed from the dataset alone: no
log is needed. The options must be those of the run: nothing in the dataset
says that it was a mixture, say, or sorted by length. For a run that was
resumed give --state, a file with what ShardLoader.state_dict() returned: seed,
shuffle, window, lanes and groups come from it, and in its epoch steps count
from the resume."""

EXAMPLES = """\
examples:
  shardkit trace alpaca --step 340 --rank 3 --world-size 8 \\
      --batch-size 4 --seed 1
  shardkit trace alpaca --row alpaca.json:20431 --world-size 8 \\
      --batch-size 4 --seed 1
  shardkit trace alpaca --step 0 --rank 1 --world-size 2 \\
      --batch-size 16 --state state.json
  shardkit trace alpaca code --weights 0.7 0.3 --step 12 \\
      --world-size 8 --batch-size 4 --seed 1"""

_IN_STATE = ("seed", "shuffle", "window", "lanes", "group_by_length")
_NOT_PLAIN = ("lanes", "group_by_length", "state")
"""Options of a ShardLoader only."""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `trace`."""
    parser.add_argument(
        "datasets",
        nargs="+",
        type=place,
        metavar="DIR|URL",
        help=f"{remote.WHERE}; several of a mixture",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--step",
        type=natural,
        metavar="S",
        help="from 0, within the epoch (with --state: after it)",
    )
    what.add_argument(
        "--row", type=_file_and_row, metavar="FILE:N", help="a source file and a row of it, from 0"
    )
    parser.add_argument("--rank", type=natural, default=0, metavar="R", help="data-parallel rank")
    parser.add_argument("--world-size", type=positive, required=True, metavar="W", help="ranks")
    parser.add_argument("--batch-size", type=positive, required=True, metavar="B", help="of a rank")
    parser.add_argument("--seed", type=natural, metavar="N", help="of the run (default: 0)")
    parser.add_argument(
        "--epoch", type=natural, metavar="N", help="from 0 (default: 0, or the one of --state)"
    )
    parser.add_argument(
        "--shuffle",
        choices=("full", "window", "none"),
        help="of the run (default: full, or window for compressed or remote shards)",
    )
    parser.add_argument("--window", type=positive, metavar="N", help="of --shuffle window")
    parser.add_argument("--lanes", type=positive, metavar="L", help="default: the world size")
    parser.add_argument("--state", type=path, metavar="FILE", help="of the loader, as JSON")
    parser.add_argument(
        "--no-drop-last",
        dest="drop_last",
        action="store_false",
        help="the run had drop_last=False: its last samples are padded, not left out",
    )
    _add_modes(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    remote.add_options(parser)


def _add_modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of runs of other kinds")
    group.add_argument(
        "--group-by-length",
        action="store_true",
        default=None,
        help="the run had group_by_length=True (with --state: it says so itself)",
    )
    group.add_argument(
        "--weights",
        type=share,
        nargs="+",
        metavar="W",
        help="the run read a ShardMixture: of each dataset, in the order of the run",
    )
    group.add_argument(
        "--until",
        choices=("first", "all", "endless"),
        help="where an epoch of the mixture ends (default: first)",
    )
    group.add_argument(
        "--data-loader",
        dest="data_loader_workers",
        type=natural,
        metavar="N",
        help="the run read a ShardDataset through a torch DataLoader with num_workers=N",
    )


def _file_and_row(text: str) -> tuple[str, int]:
    source, _, row = text.rpartition(":")
    if not source or not row.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE:N, as alpaca.json:20431")
    return source, int(row)


def run(args: argparse.Namespace) -> int:
    """Run `trace`."""
    from shardkit.report import find_row, trace_batch

    if min(args.world_size, args.batch_size) < 1 or (args.data_loader_workers or 0) < 0:
        raise UsageError(
            "--world-size and --batch-size are from 1, --data-loader from 0", fix="Correct them."
        )
    data = _data(args)
    topology = _topology(args, data)
    if args.row is None:
        found = trace_batch(data, topology, step=args.step, rank=args.rank)
        return _print(args, topology, found)
    source, row = args.row
    seen = find_row(data, topology, source=source, row=row)
    return _print_sightings(args, topology, seen)


def _data(args: argparse.Namespace) -> Dataset | Mixture:
    from shardkit.dataset import open_dataset
    from shardkit.report import Mixture

    opened = [open_dataset(path, **remote.options(args)) for path in args.datasets]
    if args.weights is not None:
        _refuse(args, "--weights beside what a mixture has not", "lanes")
        return Mixture(opened, args.weights, args.until or "first")
    _refuse(args, "an option of a mixture without --weights", "until")
    if len(opened) > 1:
        raise UsageError(
            "several datasets without --weights",
            found=" ".join(args.datasets),
            fix="Give the weights that ShardMixture had, or one dataset.",
        )
    return opened[0]


def _refuse(args: argparse.Namespace, problem: str, *names: str) -> None:
    """Raise UsageError when one of these options was given."""
    given = [name for name in names if getattr(args, name) is not None]
    if given:
        raise UsageError(
            problem,
            found=", ".join(f"--{name.replace('_', '-')}" for name in given),
            fix="Leave it out.",
        )


def _topology(args: argparse.Namespace, data: Dataset | Mixture) -> Topology:
    from shardkit.report import Topology, topology_of_state

    if args.data_loader_workers is not None:
        _refuse(args, "--data-loader beside an option of ShardLoader", *_NOT_PLAIN)
    if args.state is None:
        given = {name: value for name in _IN_STATE if (value := getattr(args, name)) is not None}
        return Topology(
            world_size=args.world_size,
            batch_size=args.batch_size,
            epoch=args.epoch or 0,
            drop_last=args.drop_last,
            data_loader_workers=args.data_loader_workers,
            **given,
        )
    _refuse(args, "--state beside what it says itself", *_IN_STATE)
    return topology_of_state(
        data,
        _read_state(args.state),
        world_size=args.world_size,
        batch_size=args.batch_size,
        epoch=args.epoch,
        drop_last=args.drop_last,
    )


def _read_state(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise UsageError(
            "--state is not a JSON file",
            where=str(path),
            found=str(err),
            fix="Write it with json.dump(loader.state_dict(), file).",
        ) from err


def _print(args: argparse.Namespace, topology: Topology, found: list[Origin]) -> int:
    if args.json:
        render.print_json(found)
        return 0
    columns = [("batch row", "right"), ("shard", "left"), ("key", "left"), ("source", "left")]
    columns += [("row", "right"), ("tokens", "right")]
    rows = [
        (o.slot, _shard(args, o), o.key, o.source, _row(o), _tokens(o.start, o.length, o.first))
        for o in found
    ]
    render.table(_title(args, topology), columns, rows)
    return 0


def _row(found: Origin) -> str:
    return f"{found.row} (piece {found.piece})" if found.piece else str(found.row)


def _tokens(start: int, length: int, first: int) -> str:
    text = f"{start}-{start + length - 1}"
    return f"{text} (from {first})" if first else text


def _print_sightings(args: argparse.Namespace, topology: Topology, seen: list[Sighting]) -> int:
    if args.json:
        render.print_json(seen)
        return 0
    columns = [("step", "right"), ("rank", "right"), ("batch row", "right"), ("shard", "left")]
    columns += [("key", "left"), ("tokens", "right"), ("", "left")]
    rows = [
        (*_when(s), _shard(args, s), s.key, _tokens(s.start, s.length, 0), s.note) for s in seen
    ]
    render.table(_title(args, topology), columns, rows)
    return 0


def _shard(args: argparse.Namespace, found: Origin | Sighting) -> str:
    """The shard; of a mixture as keys have it, with the number of its dataset, from 0."""
    is_one = len(args.datasets) == 1
    return found.shard if is_one else f"{found.member}/{found.shard}"


def _when(seen: Sighting) -> list[object]:
    return ["-" if part is None else part for part in (seen.step, seen.rank, seen.slot)]


def _title(args: argparse.Namespace, topology: Topology) -> str:
    """What the table is about, and from where steps count when not from the epoch's start."""
    what = (
        ":".join(map(str, args.row or ()))
        or f"step {args.step}, rank {args.rank} of {args.world_size}"
    )
    after = f" (steps after {topology.origin} samples of it)" if topology.origin else ""
    kind = ", by length" if topology.group_by_length or topology.group else ""
    return f"{what}, epoch {topology.epoch}{after}{kind}"
