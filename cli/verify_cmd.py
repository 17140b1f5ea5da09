"""shardkit verify: prove a dataset."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from shardkit.errors import ShardkitError

from . import remote, render
from .options import count_or_auto, length, natural, place

if TYPE_CHECKING:
    from shardkit.check import Finding, Findings

DESCRIPTION = """\
Prove that a dataset is whole and is what its manifest says: tar structure,
every hash, index against members, ids inside the vocabulary, labels, lengths,
images, and the account of every row. Nothing is written. With --source, sampled
rows are tokenised again and compared."""

EXAMPLES = """\
examples:
  shardkit verify alpaca
  shardkit verify alpaca --tokenizer Qwen/Qwen2.5-0.5B --template qwen_chat \\
      --max-length 2048
  shardkit verify alpaca --source alpaca.json --workers 8
  shardkit verify alpaca llava chats
  shardkit verify s3://bucket/alpaca --workers 8
  shardkit verify alpaca --json | jq .findings

exit status: 0 when all is good, 1 when a problem was found"""

_SHOWN = 40


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify`."""
    parser.add_argument(
        "datasets", nargs="+", type=place, metavar="DIR|URL", help=f"{remote.WHERE}; or more"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR_OR_NAME", help="must be the one it was packed with"
    )
    parser.add_argument(
        "--processor",
        metavar="DIR_OR_NAME",
        help="must be the one it was packed with; counts the tokens of every picture again",
    )
    parser.add_argument("--template", metavar="NAME", help="must be the one it was packed with")
    parser.add_argument(
        "--max-length", type=length, metavar="N", help="must be the one of the pack"
    )
    parser.add_argument(
        "--source",
        nargs="+",
        type=place,
        default=[],
        metavar="FILE",
        help="input files, to tokenise rows again",
    )
    parser.add_argument(
        "--retokenise", type=natural, default=64, metavar="N", help="how many rows (default: 64)"
    )
    parser.add_argument(
        "--workers",
        type=count_or_auto,
        default="auto",
        metavar="N",
        help="processes, or auto (default): one for each core where there is enough to do",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    render.add_progress_options(parser)
    remote.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run `verify`, one dataset after another; the worst exit status."""
    found, status = [], 0
    for dataset in args.datasets:
        begun = time.monotonic()
        try:
            findings = _verify(args, dataset)
        except ShardkitError as err:
            if len(args.datasets) == 1:
                raise
            status = 1
            render.note(f"shardkit: {err.describe()}")
            continue
        status = max(status, 1 if findings.problems else 0)
        if args.json:
            found.append(_as_json(findings))
        elif findings.problems or not args.quiet:
            _show(findings, time.monotonic() - begun)
    if args.json:
        render.print_json(found if len(args.datasets) > 1 else found[0])
    return status


def _verify(args: argparse.Namespace, dataset: str) -> Findings:
    from shardkit.check import verify

    with render.meter("verifying", args) as meter:
        return verify(
            dataset,
            tokenizer=args.tokenizer,
            processor=args.processor,
            template=args.template,
            max_length=args.max_length,
            sources=args.source,
            workers=args.workers,
            n_retokenised=args.retokenise,
            on_shard=render.adding(meter),
            **remote.options(args),
        )


def _as_json(findings: Findings) -> dict[str, object]:
    return {
        "path": findings.path,
        "ok": not findings.problems,
        "findings": findings.findings,
        "n_shards": findings.n_shards,
        "n_samples": findings.n_samples,
        "n_tokens": findings.n_tokens,
        "n_images": findings.n_images,
        "n_bytes": findings.n_bytes,
        "n_rows_retokenised": findings.n_rows_retokenised,
        "next_command": findings.next_command,
    }


def _code(finding: Finding) -> str:
    return finding.code if finding.severity == "error" else f"{finding.code} (warning)"


def _show(findings: Findings, took: float) -> None:
    shown = findings.findings[:_SHOWN]
    if shown:
        rows = [
            (_code(f), render.visible(f.place()) or "-", render.visible(f.message)) for f in shown
        ]
        columns = [("check", "left"), ("where", "left"), ("what", "left")]
        render.table(None, columns, rows)
        if len(findings.findings) > _SHOWN:
            print(f"and {len(findings.findings) - _SHOWN} more (all of them with --json)")
    counts = (
        f"{render.count(findings.n_shards, 'shard')}, "
        f"{render.count(findings.n_samples, 'sample')}, "
        f"{render.count(findings.n_tokens, 'token')}"
    )
    if findings.n_images:
        counts += f", {render.count(findings.n_images, 'image')}"
    render.facts(
        findings.path,
        [
            ("looked at", f"{counts}; {render.size(findings.n_bytes)} in {render.seconds(took)}"),
            ("checked", "; ".join(findings.checked)),
        ],
    )
    if not findings.problems:
        print("good: no problem found")
        return
    n_problems = render.count(len(findings.problems), "problem")
    n_shards = len(findings.damaged_shards)
    print(f"bad: {n_problems}" + (f" in {render.count(n_shards, 'shard')}" if n_shards else ""))
    if findings.next_command:
        render.note(f"Next: {findings.next_command}")
