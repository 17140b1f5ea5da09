"""shardkit pack: raw files become a dataset."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import UsageError
from shardkit.format.codec import compression_choices

from . import remote, render
from .ledger import show_end, show_ledger, summary

if TYPE_CHECKING:
    from shardkit.builder import Plan, Progress

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
    parser.add_argument("--out", metavar="DIR|URL", help="a new or empty folder, or a URL")
    parser.add_argument(
        "--format",
        dest="source_format",
        default="auto",
        metavar="NAME",
        help="auto, alpaca, sharegpt, messages, llava, text or tokenized (default: auto)",
    )
    _tokens(parser.add_argument_group("tokens and labels"))
    _images(parser.add_argument_group("images"))
    _rows(parser.add_argument_group("rows and shards"))
    _running(parser.add_argument_group("running"))


def _tokens(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tokenizer", required=True, metavar="DIR_OR_NAME", help="a folder or a hub name"
    )
    group.add_argument(
        "--template",
        default="tokenizer",
        metavar="NAME",
        help="a named template, `tokenizer` (its own chat template, the default), or a "
        ".json or .jinja file",
    )
    group.add_argument(
        "--system", metavar="TEXT", help="for conversations without a system message"
    )
    group.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a row; longer rows keep their head"
    )
    group.add_argument(
        "--packing",
        choices=("none", "concat", "best-fit"),
        default="none",
        help="none; concat (concatenate, cut at max-length); best-fit (split no sample)",
    )
    group.add_argument(
        "--special-tokens-in-text",
        choices=("parse", "literal"),
        default="parse",
        help="whether `<|im_end|>` typed by a user becomes that token (default: parse, as XTuner)",
    )
    group.add_argument(
        "--date", metavar="YYYY-MM-DD", help="what a chat template prints as today's date"
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run a hub tokenizer's code"
    )


def _images(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image-root", type=Path, metavar="DIR", help="where image paths begin")
    group.add_argument(
        "--image-tokens", type=int, default=1, metavar="N", help="tokens of an image in the model"
    )
    group.add_argument(
        "--image-token",
        default="-200",
        metavar="ID_OR_TEXT",
        help="the placeholder (default: -200)",
    )
    group.add_argument("--image-size", type=int, metavar="N", help="store JPEGs of N x N pixels")
    group.add_argument(
        "--image-fit", choices=("pad", "crop", "resize"), default="pad", help="how they get there"
    )
    group.add_argument("--image-quality", type=int, default=90, metavar="Q", help="1 to 100")
    group.add_argument("--max-images", type=int, metavar="N", help="of a row, and of a pack")


def _rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--shuffle-seed", type=int, metavar="N", help="shuffle all rows first")
    group.add_argument(
        "--shard-size", type=_bytes, default="64M", metavar="SIZE", help="of a shard (default: 64M)"
    )
    group.add_argument("--compression", default="none", metavar="CODEC", help=compression_choices())
    group.add_argument(
        "--on-error",
        choices=("reject", "fail"),
        default="reject",
        help="what a bad row does: it is listed (default), or it stops the run",
    )
    group.add_argument(
        "--max-rejects", type=float, metavar="N", help="fail above N rows, or above a share below 1"
    )
    group.add_argument("--part-rows", type=int, metavar="N", help="rows of a part, at most")


def add_engine(group: argparse._ActionsContainer) -> None:
    """Add the options of who builds, and with what tokenizer engine."""
    group.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    group.add_argument(
        "--engine",
        dest="build_engine",
        choices=("local", "ray"),
        default="local",
        help="processes here, or Ray tasks",
    )
    group.add_argument("--ray-address", metavar="ADDRESS", help="of a running cluster, or `auto`")
    group.add_argument(
        "--tokenizer-engine",
        dest="engine",
        choices=("auto", "hf", "fastokens"),
        default="auto",
        help="auto takes a fast engine only where its ids agree (default)",
    )


def _running(group: argparse._ArgumentGroup) -> None:
    add_engine(group)
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


def run(args: argparse.Namespace) -> int:
    """Run `pack`."""
    options = _options(args)
    if args.dry_run:
        return _dry_run(args, options)
    if args.out is None:
        raise UsageError("--out is missing", fix="Name a new folder: --out DIR.")
    from shardkit.builder import pack

    begun = time.monotonic()
    with render.meter("packing") as meter:
        watch = Watch(meter)
        manifest = pack(
            args.inputs,
            args.out,
            workers=args.workers,
            overwrite=args.overwrite,
            build_engine=args.build_engine,
            ray_address=args.ray_address,
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
    else:
        show_ledger(manifest)
        show_end(manifest, args.out, time.monotonic() - begun, watch.rate)
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of PackOptions that the command line gives."""
    from dataclasses import fields

    from shardkit.builder import PackOptions

    names = {field.name for field in fields(PackOptions)}
    options = {name: value for name, value in vars(args).items() if name in names}
    options["image_token"] = _image_token(args)
    return options


def _image_token(args: argparse.Namespace) -> int:
    try:
        return int(args.image_token)
    except ValueError:
        from shardkit.builder.plan import image_token_names
        from shardkit.tokens import load_tokenizer

        tokenizer = load_tokenizer(args.tokenizer, trust_remote_code=args.trust_remote_code)
        return image_token_names(tokenizer, args.image_token)


def _dry_run(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from shardkit.builder import PackOptions, make_plan
    from shardkit.builder.preview import preview

    with tempfile.TemporaryDirectory() as spool:
        plan = make_plan(args.inputs, PackOptions(**options), spool=Path(spool))
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


def _bytes(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    unit = units.get(text[-1:].upper(), 0)
    digits = text[:-1] if unit else text
    if not digits.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 64M or 1G")
    return int(digits) << unit
