"""How fast raw records become training files: shardkit, the bare tokenizer, and rivals.

    python benchmarks/pack.py [FILE] [--tokenizers DIR] [--rows N] [--hf-rows N] [--rival-rows N]
                              [--rounds N] [--minutes M] [--only NAME ...] [--engines ...]
                              [--workers ...] [--packing ...] [--python NAME=PATH ...] [--json]
                              [--versions] [--quick]

FILE is a JSON array of Alpaca records, DIR holds tokenizers named qwen2_5, llama3_2, internlm2 and
llama2 (those that are there are used); without them, small data of this repository.
Rivals: pip install datasets litdata mosaicml-streaming (or --python litdata=ENV/bin/python each).

Every contender runs in a fresh process in every round, rounds interleaved; medians. One worker is
pinned to one core, and its start-up (imports, loading tokenizer and engine) is shown apart; what
several workers load, and litData's, is in their times. Rates are of rows read. On a machine that
others use too, trust CPU seconds and ratios. What is interrupted (Ctrl-C, SIGTERM, --minutes)
reports the runs that were made.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import load, machine

import shardkit

HERE = Path(__file__).resolve().parent
SMALL = HERE.parent / "tests" / "data" / "tokenizer"
TEMPLATES = {
    "qwen2_5": "qwen_chat",
    "llama3_2": "llama3_chat",
    "internlm2": "internlm2_chat",
    "llama2": "vicuna",
}
CONTENDERS = ("bare", "shardkit", "datasets", "litdata", "mds")
TIMEOUT_S = 900


@dataclass(frozen=True)
class Case:
    """What is packed how; contenders of one case are compared."""

    tokenizer: Path
    template: str
    engine: str
    workers: int
    packing: str = "none"

    @property
    def name(self) -> str:
        """For tables."""
        packing = "" if self.packing == "none" else f", {self.packing}"
        return f"{self.tokenizer.name}, {self.engine}, {self.workers} worker(s){packing}"


Results = dict[tuple[str, Case], list[dict[str, Any]]]
"""What the rounds of each contender and case made."""


def runs(args: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """Every (contender, case) that makes sense."""
    found = {args.tokenizers / name: name for name in TEMPLATES} if args.tokenizers else {}
    tokenizers = {path: TEMPLATES[name] for path, name in found.items() if path.is_dir()}
    for path, template in (tokenizers or {SMALL: "qwen_chat"}).items():
        for engine in args.engines:
            for workers in args.workers:
                for packing in args.packing:
                    for name in args.only:
                        is_there = {
                            "bare": workers == 1 and packing == "none",
                            "shardkit": True,
                            "datasets": engine == "hf" and packing == "none",
                            "litdata": packing == "none",
                            "mds": workers == 1 and packing == "none",
                        }[name]
                        if is_there:
                            yield name, Case(path, template, engine, workers, packing)


def run(name: str, case: Case, source: Path, python: str, left: float) -> dict[str, Any] | None:
    """One run in a fresh process; `{"failed": why}` when it fails, None when no time was left."""
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "source": str(source), "tokenizer": str(case.tokenizer), "template": case.template,
            "engine": case.engine, "workers": case.workers, "packing": case.packing,
            "folder": folder,
        }  # fmt: skip
        library = str(Path(shardkit.__file__).resolve().parents[1])
        try:
            done = subprocess.run(
                [python, str(HERE / "packers" / "child.py"), name, json.dumps(task)],
                capture_output=True, text=True, timeout=min(left, TIMEOUT_S),
                env={**os.environ, "PYTHONPATH": library},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None if left < TIMEOUT_S else {"failed": f"took more than {TIMEOUT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, as rates; `error` and no metrics when a round failed."""
    failed = [one["failed"] for one in found if "failed" in one]
    if failed:
        return {"metrics": {}, "error": failed[0]}
    keys = ("startup_s", "startup_cpu_s", "wall_s", "cpu_s")
    out = {key: round(statistics.median(one[key] for one in found), 3) for key in keys}
    rows, tokens = found[0]["n_rows"], found[0]["n_tokens"]
    out["n_rows"], out["n_rounds"] = rows, len(found)
    for kind, n in (("rows", rows), ("tokens", tokens)):
        if n:
            out[f"{kind}_per_s"] = round(n / out["wall_s"])
            out[f"{kind}_per_cpu_s"] = round(n / out["cpu_s"])
    return {"metrics": out}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Rows a CPU second over those of the bare call (same tokenizer and engine) and of datasets."""
    rates = {
        (row["contender"], row["tokenizer"], row["engine"]): row["metrics"].get("rows_per_cpu_s")
        for row in rows
        if row["workers"] == 1 and row["packing"] == "none"
    }
    for row in rows:
        rate = row["metrics"].get("rows_per_cpu_s")
        for other, engine in (("bare", row["engine"]), ("datasets", "hf")):
            base = rates.get((other, row["tokenizer"], engine))
            if rate and base:
                row["metrics"][f"times_{other}"] = round(rate / base, 2)


def measure(args: argparse.Namespace, sources: dict[str, Path], loads: list[float]) -> Results:
    """All runs, round by round; `loads` gets the machine's load before each round.

    Ends early, with what it has, when it is interrupted or the time is over.
    """
    pythons = dict(pair.split("=", 1) for pair in args.python)
    end = time.monotonic() + 60 * args.minutes
    found: Results = defaultdict(list)
    try:
        for _ in range(args.rounds):
            loads.append(load())
            for name, case in runs(args):
                left = end - time.monotonic()
                if left < 1:
                    return found
                kind = case.engine if name in ("bare", "shardkit") else "rivals"
                python = pythons.get(name, sys.executable)
                made = run(name, case, sources[kind], python, left)
                if made is not None:
                    found[name, case].append(made)
    except KeyboardInterrupt:
        print("interrupted: these are the runs until then", file=sys.stderr)
    return found


def cut(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Files of as many records as each engine, and the rivals, are given."""
    given = args.source or HERE.parent / "examples" / "data" / "alpaca.json"
    records = [row for row in json.loads(given.read_text()) if is_plain(row)]
    limits = {
        "fastokens": args.rows,
        "hf": args.hf_rows or args.rows,
        "rivals": args.rival_rows or args.rows,
    }
    for name, n in limits.items():
        (folder / f"{name}.json").write_text(json.dumps(records[:n]))
    return {name: folder / f"{name}.json" for name in limits}


def is_plain(row: object) -> bool:
    """Whether every contender can read a row: some of the small data are meant to be rejected."""
    fields = ("instruction", "input", "output")
    return isinstance(row, dict) and all(isinstance(row.get(name), str) for name in fields)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", nargs="?", type=Path, metavar="FILE")
    parser.add_argument("--tokenizers", type=Path, metavar="DIR")
    parser.add_argument("--rows", type=int, help="of FILE; all by default")
    parser.add_argument("--hf-rows", type=int, help="for the engine hf, which is slower")
    parser.add_argument("--rival-rows", type=int, help="for the rivals, which are slower still")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=600, help="no run is begun later")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--engines", nargs="+", default=("hf", "fastokens"))
    parser.add_argument("--workers", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--packing", nargs="+", default=("none", "best-fit"))
    parser.add_argument("--python", nargs="+", default=(), metavar="NAME=PATH")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--versions", action="store_true", help="show them in the table")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds, args.workers, args.packing = 60, 1, (1,), ("none",)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, cut(args, Path(folder)), loads)
    rows = [
        {"contender": name, "case": case.name, "tokenizer": case.tokenizer.name,
         "engine": case.engine, "workers": case.workers, "packing": case.packing,
         **summary(results)}
        for (name, case), results in found.items()
    ]  # fmt: skip
    add_ratios(rows)
    used = {
        name: v
        for some in found.values()
        for one in some
        for name, v in one.get("versions", {}).items()
    }
    if args.json:
        about = machine(loads, used) | {"n_rounds": len(loads)}
        report = {"benchmark": "pack", "machine": about, "rows": rows}
        print(json.dumps(report, indent=1))
        return
    if args.versions:
        print(", ".join(f"{name} {version}" for name, version in sorted(used.items())))
    show(rows, loads)


def show(rows: list[dict[str, Any]], loads: list[float]) -> None:
    """The table."""
    print(f"load {loads}; rates without start-up; x bare, x datasets: rows a CPU second")
    titles = f"{'rows/s':>8} {'tokens/s':>10} {'CPU s':>7} {'start s':>7} x bare  x datasets"
    print(f"{'':10} {'':38} {titles}")
    for row in sorted(rows, key=lambda row: row["case"]):
        what = row["metrics"]
        if "error" in row:
            print(f"{row['contender']:10} {row['case']:38} failed: {row['error']}")
            continue
        print(
            f"{row['contender']:10} {row['case']:38} {what['rows_per_s']:8} "
            f"{what.get('tokens_per_s', ''):>10} {what['cpu_s']:7.2f} {what['startup_s']:7.2f} "
            f"{what.get('times_bare', ''):>6} {what.get('times_datasets', ''):>8}"
        )


if __name__ == "__main__":
    main()
