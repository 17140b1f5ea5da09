"""How fast training reads: shardkit, its rivals, and mapped flat files, on the same samples.

    python benchmarks/read.py [--json] [--quick] [--only NAME ...] [--python NAME=PATH ...]
                              [--folder DIR] [--data DIR]

Every contender runs in a fresh process in every round, rounds interleaved; medians. A contender
that fails is shown as failed. --python gives a contender an interpreter of its own (rivals ask
for versions that exclude each other). --data: a folder with text/alpaca_data.json,
llava/blip_laion_cc_sbu_1k.json, images/llava_pretrain and tokenizers/qwen2_5; without it small
data of this repository. --folder keeps what was written for the next run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import load, machine

from shardkit import ShardTable, pack

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples" / "data"
SMALL_TOKENIZER = HERE.parent / "tests" / "data" / "tokenizer"
CONTENDERS = (
    "shardkit", "memmap", "litdata", "datasets", "datasets_iterable", "grain", "lance", "mds",
    "webdataset", "energon",
)  # fmt: skip
CASES = ("text", "packed", "zstd", "images", "decoded")
HAS_ZSTD = ("shardkit", "litdata", "mds", "grain")
TIMEOUT_S = 300


def prepare(folder: Path, data: Path | None) -> None:
    """Pack the samples with shardkit, and lay them out flat for all others."""
    if data is None:
        text, llava, images = (EXAMPLES / name for name in ("alpaca.json", "llava.json", "images"))
        tokenizer = SMALL_TOKENIZER
    else:
        text, tokenizer = data / "text/alpaca_data.json", data / "tokenizers/qwen2_5"
        llava, images = data / "llava/blip_laion_cc_sbu_1k.json", data / "images/llava_pretrain"
    options = {"tokenizer": tokenizer, "template": "qwen_chat", "max_length": 2048}
    asked: dict[str, tuple[Path, dict[str, Any]]] = {
        "plain": (text, {}),
        "packed": (text, {"packing": "best-fit"}),
        "plain-zstd": (text, {"compression": "zstd:1"}),
        "images": (llava, {"image_root": images}),
    }
    for name, (source, more) in asked.items():
        out = folder / "shardkit" / name
        if not (out / "manifest.json").exists():
            pack(source, out, **options, **more)
        if not name.endswith("zstd") and not (folder / "flat" / name / "offsets.npy").exists():
            lay_flat(out, folder / "flat" / name)


def lay_flat(dataset: Path, out: Path) -> None:
    """tokens.bin, images.bin and where each sample begins in them; one picture a sample."""
    out.mkdir(parents=True, exist_ok=True)
    n_tokens, n_bytes = [0], [0]
    with open(out / "tokens.bin", "wb") as tokens, open(out / "images.bin", "wb") as images:
        for sample in ShardTable(dataset):
            pictures = sample.get("images", [])
            if dataset.name == "images" and len(pictures) != 1:
                continue
            names = [n for n in ("input_ids", "labels", "position_ids") if n in sample]
            for name in names:
                tokens.write(sample[name].numpy().astype(np.int32).tobytes())
            images.write(b"".join(pictures))
            n_tokens.append(n_tokens[-1] + len(sample["input_ids"]))
            n_bytes.append(n_bytes[-1] + sum(map(len, pictures)))
    np.save(out / "image_offsets.npy", n_bytes)
    np.save(out / "offsets.npy", n_tokens)


def run(python: str, name: str, cases: str, folder: Path, *more: str) -> dict[str, Any]:
    """What child.py says, or {"error": its last words}."""
    command = [python, str(HERE / "rivals" / "child.py"), name, cases, str(folder), *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (subprocess.TimeoutExpired, OSError) as err:
        return {"error": str(err)}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cases_of(name: str) -> list[str]:
    """The cases that a contender takes part in."""
    return [case for case in CASES if case != "zstd" or name in HAS_ZSTD]


def write_all(
    folder: Path, names: list[str], pythons: Mapping[str, str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Bytes on disk by contender and data, and why a contender cannot take part."""
    sizes: dict[str, dict[str, float]] = {}
    errors: dict[str, str] = {}
    for name in names:
        done = folder / name / "done"
        if name != "shardkit" and not done.exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            wanted = ",".join(case for case in cases_of(name) if case != "decoded")
            found = run(pythons[name], name, wanted, folder, "--write")
            if "error" in found:
                errors[name] = found["error"]
                continue
            done.parent.mkdir(exist_ok=True)
            done.touch()
        home = folder / ("flat" if name == "memmap" else name)
        sizes[name] = {
            data.name: sum(
                file.stat().st_size
                for file in data.rglob("*")
                if file.is_file() and file.parent.name != "tokenizer"  # of one size for any data
            )
            for data in home.iterdir()
            if data.is_dir()
        }
    return sizes, errors


def gather(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of what the rounds of one contender say, by case."""
    values: dict[str, dict[str, list[float]]] = {}
    for found in rounds:
        for case, metrics in found["cases"].items():
            for metric, value in metrics.items():
                values.setdefault(case, {}).setdefault(metric, []).append(value)
    return {
        case: {metric: statistics.median(each) for metric, each in metrics.items()}
        for case, metrics in values.items()
    }


def add_sizes(
    metrics: dict[str, dict[str, float]], sizes: Mapping[str, float], folder: Path
) -> None:
    """Bytes a token on disk, of the cases without pictures."""
    for case, data in {"text": "plain", "packed": "packed", "zstd": "plain-zstd"}.items():
        if f"{case}/0" in metrics and data in sizes:
            flat = folder / "flat" / data.removesuffix("-zstd") / "offsets.npy"
            n_tokens = int(np.load(flat)[-1])
            metrics[f"{case}/0"]["bytes_per_token"] = sizes[data] / n_tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="most for one figure")
    args = parser.parse_args()
    pythons = dict.fromkeys(CONTENDERS, sys.executable)
    pythons |= dict(pair.split("=", 1) for pair in args.python)
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(args, args.folder or Path(scratch), pythons)
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def measure(args: argparse.Namespace, folder: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """The whole run."""
    prepare(folder, args.data)
    sizes, errors = write_all(folder, list(args.only), pythons)
    rounds: dict[str, list[dict[str, Any]]] = {}
    loads = []
    seconds = 0.05 if args.quick else args.seconds
    for number in range(1 if args.quick else args.rounds):
        loads.append(load())
        for name in args.only:
            if name in errors:
                continue
            once = ["--once"] if number == 0 else []
            more = ["--workers", "0" if args.quick else "0,2", "--seconds", str(seconds), *once]
            found = run(pythons[name], name, ",".join(cases_of(name)), folder, *more)
            print(f"round {number}: {name} {found.get('error', '')}", file=sys.stderr, flush=True)
            if "error" in found:
                errors[name] = found["error"]
            else:
                rounds.setdefault(name, []).append(found)
    rows, versions = [], {}
    for name, found in rounds.items():
        metrics = gather(found)
        add_sizes(metrics, sizes.get(name, {}), folder)
        versions |= found[0]["versions"]
        label = found[0]["label"]
        rows += [{"contender": label, "case": c, "metrics": m} for c, m in metrics.items()]
    rows += [
        {"contender": name, "case": "all", "metrics": {}, "error": text}
        for name, text in errors.items()
    ]
    about = machine(loads, versions) | {"n_rounds": len(loads)}
    return {"benchmark": "read", "machine": about, "rows": rows}


def show(report: Mapping[str, Any]) -> None:
    """A table of samples a second."""
    print(json.dumps(report["machine"]))
    labels = list(dict.fromkeys(row["contender"] for row in report["rows"]))
    columns = list(dict.fromkeys(row["case"] for row in report["rows"]))
    found = {(row["contender"], row["case"]): row for row in report["rows"]}
    print(f"{'samples a second':26s}" + "".join(f"{column:>12s}" for column in columns))
    for label in labels:
        cells = [found.get((label, column), {}).get("metrics", {}) for column in columns]
        rates = [f"{each['samples_per_s']:12,.0f}" if each else f"{'-':>12s}" for each in cells]
        error = found.get((label, "all"), {}).get("error", "")
        print(f"{label:26s}" + "".join(rates) + error)


if __name__ == "__main__":
    main()
