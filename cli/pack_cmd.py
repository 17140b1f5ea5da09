"""shardkit pack: raw files become a dataset."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardkit.builder import PackOptions, Plan, Progress, make_plan, pack
from shardkit.builder.engines import engine_options
from shardkit.builder.options import IMAGES, ROWS, RUNNING, TOKENS
from shardkit.builder.preview import preview
from shardkit.errors import UsageError
from shardkit.options import validated
from shardkit.sources import find_inputs

from . import remote, render
from .ledger import show_end, show_ledger, summary
from .options import add_options, given, option_group

DESCRIPTION = """\
Turn raw JSON (Alpaca, ShareGPT, OpenAI messages, LLaVA, plain text), Parquet,
or a folder of tokenised rows into tar shards with a manifest. The result is the
same for any number of workers; a run that was killed continues when the same
command is run again."""

EXAMPLES = """\
examples:
  shardkit pack alpaca.json --out alpaca --tokenizer Qwen/Qwen2.5-0.5B \\
      --template qwen_chat --max-length 2048 --packing best-fit --workers 8
  shardkit pack 'chats/*.jsonl.gz' --out chats --tokenizer ./llama \\
      --template tokenizer
  shardkit pack llava.json --out llava --image-root images \\
      --tokenizer ./vicuna --template vicuna --max-length 2048 \\
      --image-tokens 576
  shardkit pack alpaca.json --tokenizer ./qwen --template qwen_chat --dry-run

in a Slurm array of 16 tasks, then once:
  shardkit pack big.jsonl --out big --tokenizer ./qwen \\
      --part $SLURM_ARRAY_TASK_ID/16
  shardkit merge big"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pack`."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, globs or folders")
    parser.add_argument("-o", "--out", metavar="DIR|URL", help="a new or empty folder, or a URL")
    for title in (TOKENS, IMAGES, ROWS, RUNNING):
        option_group(parser, title)
    add_options(parser, PackOptions)
    add_engine(parser)
    _running(parser)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options of who builds."""
    for options in engine_options():
        add_options(parser, options)


def _running(parser: argparse.ArgumentParser) -> None:
    group = option_group(parser, RUNNING)
    group.add_argument(
        "--part", type=_part, metavar="I/N", help="build only the I-th of N shares (Slurm arrays)"
    )
    group.add_argument(
        "--work-dir", metavar="DIR", help="where a dataset for a URL is built (default: the cache)"
    )
    remote.add_storage_option(group)
    group.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    group.add_argument(
        "--dry-run", action="store_true", help="show the plan and the first samples; write nothing"
    )
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    render.add_progress_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `pack`."""
    if args.out is None and not args.dry_run:
        raise UsageError("--out is missing", fix="Name a new folder: --out DIR.")
    left_out = find_inputs(args.inputs, getattr(args, "split", "train")).left_out
    if left_out:
        names = ", ".join(str(path) for path in left_out[:5])
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        render.note(f"Left out: {names}{more} (--split all packs all, --split test these)")
    if args.dry_run:
        return _dry_run(args)
    options = given(args, PackOptions, *engine_options())
    begun = time.monotonic()
    with going_on(args, Path(args.out) / ".building"), render.meter("packing", args) as meter:
        watch = Watch(meter)
        manifest = pack(
            args.inputs,
            args.out,
            overwrite=args.overwrite,
            part=args.part,
            storage_options=dict(args.storage_options),
            work_dir=args.work_dir,
            on_progress=watch.show,
            **options,
        )
    if manifest is None:
        number, n = args.part
        render.note(f"share {number} of {n} is built; when all are: shardkit merge {args.out}")
        return 0
    if args.json:
        render.print_json(summary(manifest))
    elif not args.quiet:
        show_ledger(manifest)
        show_end(manifest, args.out, time.monotonic() - begun, watch.rate)
    return 0


def _dry_run(args: argparse.Namespace) -> int:
    options = validated(PackOptions, given(args, PackOptions))
    with tempfile.TemporaryDirectory() as spool:
        plan = make_plan(args.inputs, options, spool=Path(spool))
        shown = preview(plan)
        if args.json:
            render.print_json({"identity": plan.identity, "samples": shown})
            return 0
        _show_plan(plan)
        for sample in shown:
            if sample.rejected:
                title = f"{sample.source} row {sample.row}: rejected, {sample.rejected}"
                render.console().print(render.visible(title), style="bold", markup=False)
            else:
                title = f"{sample.source} row {sample.row}: {sample.n_tokens} tokens"
                render.facts(title, [("", render.masked(sample.pieces))])
    render.note("Nothing was written (--dry-run).")
    return 0


def _show_plan(plan: Plan) -> None:
    tokenizer = plan.tokenizer.identity
    render.facts(
        "plan",
        [
            ("format", f"{plan.source_format} ({plan.why_format})"),
            (
                "inputs",
                ", ".join(f"{s.name}: {render.number(s.n_rows)} rows" for s in plan.scans[:5])
                + (f" and {len(plan.scans) - 5} more" if len(plan.scans) > 5 else ""),
            ),
            ("parts", f"{plan.n_parts} of {render.number(plan.rows_per_part)} rows"),
            ("tokenizer", f"{tokenizer.sha256[:12]}, {render.number(tokenizer.vocab_size)} ids"),
            ("template", f"{plan.template.identity['name']}"),
            ("max length", plan.options.max_length or "no limit"),
            ("packing", plan.options.packing),
            ("fingerprint", plan.fingerprint[:16]),
        ],
    )


@contextmanager
def going_on(args: argparse.Namespace, building: Path) -> Iterator[None]:
    """Say how a build goes on that ended early and left something to go on with."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if any(building.glob("part-*.json")):
            render.note(f"What is built is kept. It goes on with:\n  {args.command_line}")
        raise


_SHORT = 3.0
"""Seconds of building below which a rate says more of start-up than of speed."""


class Watch:
    """Progress events as a bar with rates."""

    def __init__(self, meter: render.Meter) -> None:
        self._meter = meter
        self._begun: float | None = None
        self._first = self._n_done = 0
        self._took = 0.0

    @property
    def rate(self) -> float | None:
        """Rows a second, counted from the first rows on; None when that was too short to say."""
        if self._took < _SHORT:
            return None
        return (self._n_done - self._first) / self._took

    def show(self, progress: Progress) -> None:
        if progress.stage == "scan":
            self._meter.update(0, 0, f"scanning, {render.size(progress.n_done)}")
            return
        if progress.stage == "commit":
            self._meter.update(1, 1, "committing")
            return
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._first = now, progress.n_done
        self._n_done, self._took = progress.n_done, now - self._begun
        rate = (self._n_done - self._first) / max(self._took, 1e-3)
        detail = f"{render.number(progress.n_done)} rows"
        self._meter.update(
            progress.n_done, progress.n_total, f"{detail}, {render.number(rate)} rows/s"
        )


def _part(text: str) -> tuple[int, int]:
    number, slash, n = text.partition("/")
    if not (slash and number.isdigit() and n.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N")
    return int(number), int(n)
