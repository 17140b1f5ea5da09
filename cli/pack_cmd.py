"""shardkit pack: raw files become a dataset."""

from __future__ import annotations

import argparse
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardkit.builder import PackOptions, Plan, Progress, make_plan, pack
from shardkit.builder.build_engines import engine_options
from shardkit.builder.folder import PLAN_NAME
from shardkit.builder.options import IMAGES, ROWS, RUNNING, TOKENS
from shardkit.builder.preview import preview
from shardkit.errors import BadInput, BuildConflict, UsageError
from shardkit.options import validated
from shardkit.sources.copies import has_copies

from . import remote, render
from .options import add_options, given, option_group, path, place
from .pack_summary import show_packed

MAY_FORK = True
"""Workers may be forked from the command itself: it has no thread then."""
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
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, globs or folders, here or at a URL; - is stdin",
    )
    parser.add_argument(
        "-o", "--out", type=place, metavar="DIR|URL", help="a new or empty folder, or a URL"
    )
    for title in (TOKENS, IMAGES, ROWS, RUNNING):
        option_group(parser, title)
    add_options(parser, PackOptions)
    add_engine(parser)
    _running(parser)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options that the build engines bring along."""
    for options in engine_options():
        add_options(parser, options)


def _running(parser: argparse.ArgumentParser) -> None:
    group = option_group(parser, RUNNING)
    group.add_argument(
        "--part", type=_part, metavar="I/N", help="build only the I-th of N shares (Slurm arrays)"
    )
    group.add_argument(
        "--work-dir",
        type=path,
        metavar="DIR",
        help="where a dataset for a URL is built (default: the cache)",
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
        folder = shlex.quote(args.out)
        render.note(f"share {number} of {n} is built; when all are: shardkit merge {folder}")
        return 0
    return show_packed(manifest, args.out, args, time.monotonic() - begun, watch.rate)


def _dry_run(args: argparse.Namespace) -> int:
    options = validated(PackOptions, given(args, PackOptions))
    with tempfile.TemporaryDirectory() as spool:
        storage = dict(args.storage_options)
        plan = make_plan(args.inputs, options, spool=Path(spool), storage_options=storage)
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
    """Say how a build goes on that ended early and left something to go on with.

    Not where the same command would be refused again: those errors say themselves what to do.
    """
    try:
        yield
    except (BadInput, BuildConflict, UsageError):
        raise
    except (Exception, KeyboardInterrupt):
        if (building / PLAN_NAME).exists() or has_copies(building):
            again = " (with the same rows on stdin)" if "-" in args.inputs else ""
            render.note(f"What is done is kept. It goes on with{again}:\n  {args.command_line}")
        raise


_SHORT = 3.0
"""Seconds of building below which a rate says more of start-up than of speed."""


_DOING = {"fetch": "fetching", "scan": "scanning", "upload": "uploading"}


class Watch:
    """Progress events as a bar with rates; `title`: what building rows is called."""

    def __init__(self, meter: render.Meter, title: str = "packing") -> None:
        self._meter = meter
        self._title = title
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
        """Show a progress event on the meter."""
        if progress.stage in ("fetch", "scan", "upload"):
            name = f" {progress.name}" if progress.name else ""
            self._meter.begin(f"{_DOING[progress.stage]}{name}")
            self._meter.update(progress.n_done, progress.n_total, "bytes")
            return
        if progress.stage == "commit":
            self._meter.begin("committing")
            self._meter.update(1, 1, "")
            return
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._first = now, progress.n_done
        self._n_done, self._took = progress.n_done, now - self._begun
        self._meter.begin(self._title)
        self._meter.update(progress.n_done, progress.n_total, "rows")


def _part(text: str) -> tuple[int, int]:
    number, slash, n = text.partition("/")
    if not (slash and number.isdecimal() and n.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N")
    return int(number), int(n)
