"""shardkit plan: what a run will be like, from the indexes alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import UsageError

from . import remote, render
from .options import length, natural, path, place, positive, share

if TYPE_CHECKING:
    from shardkit.dataset import Dataset
    from shardkit.report import Mixture
    from shardkit.report.plan import Plan, PlanOptions

DESCRIPTION = """\
Say what a run over a dataset will be like: steps, tokens a step, padding, how
much longer the slowest rank of a step takes than the mean, with and without
balance="cost", memory, bytes that a node reads. Computed from the indexes, with
the loader's own order; nothing is read or trained. Where an option takes
several values (8,64,1024) every combination is a line. Several datasets are a
mixture and need --weights."""

_OF_READERS = (
    *("world_size", "batch_size", "seed", "epoch", "shuffle", "readers", "weights", "until"),
    *("json", "quiet", "log_json", "storage_options", "cache_dir"),
)
"""Options that say which shards each rank reads, and how that is printed."""

EXAMPLES = """\
examples:
  shardkit plan alpaca --world-size 8,64,1024 --batch-size 1,4
  shardkit plan alpaca --world-size 64 --max-length 2k,4k,8k \\
      --packing best-fit
  shardkit plan llava --world-size 8 --batch-size 4 --cost-model config.json
  shardkit plan alpaca --world-size 8 --readers
  shardkit plan alpaca code --weights 0.7 0.3 --world-size 8 \\
      --batch-size 4 --out plan.html"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
    parser.add_argument(
        "datasets",
        nargs="+",
        type=place,
        metavar="DIR|URL",
        help=f"{remote.WHERE}; several of a mixture",
    )
    group = parser.add_argument_group("what is compared: one value, or several as 8,64")
    group.add_argument(
        "--world-size", type=_several(positive), default=(1, 8, 64), metavar="R", help="ranks"
    )
    group.add_argument(
        "--batch-size", type=_several(positive), default=(1,), metavar="B", help="rows of a rank"
    )
    group.add_argument(
        "--workers",
        type=_several(natural),
        default=(0,),
        metavar="W",
        help="num_workers of each rank",
    )
    group.add_argument(
        "--max-length",
        type=_several(length),
        default=(None,),
        metavar="N",
        help="as shardkit repack would make rows, about",
    )
    group.add_argument(
        "--packing",
        type=_several(_packing),
        default=(None,),
        metavar="RULE",
        help="the same: none, concat or best-fit",
    )
    _add_loader_options(parser)
    _add_machine_options(parser)
    parser.add_argument(
        "--readers", action="store_true", help="say which shards each rank reads instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-o", "--out", type=path, metavar="FILE", help="write plan.md or plan.html")
    render.add_progress_options(parser)
    remote.add_options(parser)


def _add_loader_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("as the loader has it")
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of the run")
    group.add_argument("--epoch", type=natural, default=0, metavar="N", help="from 0")
    group.add_argument(
        "--shuffle",
        choices=("full", "window", "none"),
        help="default: full, or window for compressed or remote shards",
    )
    group.add_argument("--group-by-length", action="store_true", help="rows of like length")
    group.add_argument("--balance", choices=("cost",), help="steps of equal cost")
    group.add_argument(
        "--balance-scope",
        choices=("lanes", "group", "step"),
        help="default: group, or lanes for a URL",
    )
    group.add_argument(
        "--cost-model",
        type=place,
        metavar="CONFIG|T,S,I",
        help="a config.json, or the costs of a token, a squared token, an image token",
    )
    group.add_argument(
        "--no-drop-last",
        dest="drop_last",
        action="store_false",
        help="the last samples are padded, not left out",
    )
    group.add_argument(
        "--pad-to-multiple-of", type=positive, default=1, metavar="N", help="places of a row"
    )
    group.add_argument("--weights", type=share, nargs="+", metavar="W", help="of a mixture")
    group.add_argument(
        "--until", choices=("first", "all", "endless"), default="first", help="of a mixture"
    )


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of the run and its machines")
    group.add_argument(
        "--accumulation",
        type=positive,
        default=1,
        metavar="A",
        help="steps after which ranks wait for each other (default: 1)",
    )
    group.add_argument("--ranks-per-node", type=positive, default=8, metavar="N", help="default: 8")
    group.add_argument(
        "--bandwidth", type=share, default=100.0, metavar="MB/S", help="of a URL (default: 100)"
    )
    group.add_argument(
        "--shards",
        type=positive,
        metavar="N",
        help="whose indexes are read (default: all; of a URL 8)",
    )


def run(args: argparse.Namespace) -> int:
    """Run `plan`."""
    from shardkit.report.plan import Varied, check_name, make_plan, write_plan

    if args.out is not None:
        check_name(args.out)
    if args.readers:
        _refuse_without_effect(args)
    if args.balance_scope is not None and args.balance is None:
        raise UsageError("--balance-scope without --balance", fix="Give --balance cost too.")
    options = _options(args)
    varied = Varied(args.world_size, args.batch_size, args.workers, args.max_length, args.packing)
    data = _data(args)
    if args.readers:
        return _readers(args, data)
    with render.meter("planning", args) as meter:
        plan = make_plan(data, varied, options, progress=partial(meter.update, unit="steps"))
    if args.out is not None:
        write_plan(plan, args.out)
        render.note(f"wrote {args.out}")
    if args.json:
        render.print_json(plan)
    elif args.out is None:
        _show(plan)
    return 0


def _options(args: argparse.Namespace) -> PlanOptions:
    from shardkit.report.plan import PlanOptions

    return PlanOptions(
        seed=args.seed,
        epoch=args.epoch,
        shuffle=args.shuffle,
        drop_last=args.drop_last,
        pad_to_multiple_of=args.pad_to_multiple_of,
        group_by_length=args.group_by_length,
        balance=args.balance is not None,
        scope=args.balance_scope,
        weights=_weights(args.cost_model),
        accumulation=args.accumulation,
        ranks_per_node=args.ranks_per_node,
        bandwidth=args.bandwidth * 1e6,
        shards=args.shards,
    )


def _data(args: argparse.Namespace) -> Dataset | Mixture:
    from shardkit.dataset import open_dataset
    from shardkit.report import Mixture

    opened = [open_dataset(path, **remote.options(args)) for path in args.datasets]
    if args.weights is not None:
        return Mixture(opened, args.weights, args.until)
    if len(opened) > 1:
        raise UsageError(
            "several datasets without --weights",
            found=" ".join(args.datasets),
            fix="Give the weights that ShardMixture is to have, or one dataset.",
        )
    return opened[0]


def _show(plan: Plan) -> None:
    from shardkit.report.plan import tables_of

    for table in tables_of(plan.runs):
        if len(table.rows) == 1:
            render.facts(table.title, zip(table.headings, table.rows[0], strict=True))
        else:
            render.table(table.title, [(name, "right") for name in table.headings], table.rows)
    for one in plan.advice:
        print(one)
    for one in plan.notes:
        render.note(one)


def _refuse_without_effect(args: argparse.Namespace) -> None:
    """Raise UsageError for options that change nothing in the shards that each rank reads."""
    parser = argparse.ArgumentParser(add_help=False)
    build_parser(parser)
    for action in parser._actions:
        is_given = getattr(args, action.dest) != action.default
        if is_given and action.option_strings and action.dest not in _OF_READERS:
            raise UsageError(
                f"{action.option_strings[-1]} changes nothing in what --readers says",
                fix=f"Leave out {action.option_strings[-1]}, or --readers.",
            )


def _readers(args: argparse.Namespace, data: Dataset | Mixture) -> int:
    from shardkit.report import Topology
    from shardkit.report.plan import readers

    if len(args.world_size) > 1 or len(args.batch_size) > 1:
        raise UsageError(
            "--readers is of one run", fix="Give one --world-size and one --batch-size."
        )
    topology = Topology(
        world_size=args.world_size[0],
        batch_size=args.batch_size[0],
        seed=args.seed,
        epoch=args.epoch,
        shuffle=args.shuffle,
    )
    found = [shards.tolist() for shards in readers(data, topology)]
    if args.json:
        render.print_json([{"rank": rank, "shards": own} for rank, own in enumerate(found)])
        return 0
    columns = [("rank", "right"), ("shards", "right"), ("which", "left")]
    shown = [(rank, len(own), _ranges(own)) for rank, own in enumerate(found[:64])]
    render.table(f"epoch {args.epoch}, seed {args.seed}", columns, shown)
    if len(found) > len(shown):
        print(f"  and {len(found) - len(shown)} more (all of them with --json)")
    return 0


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as at most eight ranges: [0, 1, 2, 3, 7] is "0-3, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    texts = [f"{a}" if a == b else f"{a}-{b}" for a, b in parts]
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")


def _several(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A parser of values with commas between them, each once: "8,64" gives (8, 64)."""

    def parsed(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(parse(part) for part in text.split(",")))

    return parsed


def _packing(text: str) -> str:
    from shardkit.tokens.layout import RULES

    if text not in RULES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(RULES)}")
    return text


def _weights(text: str | None) -> tuple[int, int, int]:
    """The weights of cost.weights_of from three numbers, a model's folder or its config.json."""
    from shardkit.order.cost import weights_of
    from shardkit.processors.model_config import config_of

    if text is None:
        return weights_of(None)
    parts = text.split(",")
    if len(parts) == 3 and all(part.strip().isdecimal() for part in parts):
        return weights_of([int(part) for part in parts])
    path = Path(text)
    path = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as err:
        raise UsageError(
            "--cost-model is neither a config.json nor three whole numbers",
            found=text,
            fix="Give a model's folder or config.json, or costs as 24576,1,0.",
        ) from err
    return weights_of(config_of(raw))
