"""One contender in a process of its own: write its files, or measure it. Prints JSON.

python child.py NAME CASES FOLDER [--write] [--once] [--seconds S] [--workers 0,2]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import random
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from common import Case

LATER = ("text", "packed")
"""Cases of which a second epoch, and a loop with training steps, are measured as well."""
STEP = (640, 640)
"""A training step: one product of matrices of this shape, about 3 ms of one core."""


def memory() -> dict[str, float]:
    """MB of this process: the peak, and of that now anonymous and of mapped files."""
    names = {"VmHWM": "rss_peak_mb", "RssAnon": "rss_anonymous_mb", "RssFile": "rss_file_mb"}
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in lines if ":" in line)
    return {names[key]: int(value.split()[0]) / 1024 for key, value in pairs if key in names}


def cases(text: str, folder: Path) -> list[Case]:
    """The cases of a comma-separated list of names."""
    flat = folder / "flat"
    known = {
        "text": Case("text", "plain", flat),
        "packed": Case("packed", "packed", flat, is_packed=True),
        "zstd": Case("zstd", "plain", flat, compression="zstd"),
        "images": Case("images", "images", flat, batch_size=8, has_images=True),
        "decoded": Case("decoded", "images", flat, batch_size=8, has_images=True, decode=True),
    }
    chosen = [known[name] for name in text.split(",")]
    return [replace(c, batch_size=max(1, min(c.batch_size, len(c) // 4))) for c in chosen]


def place(case: Case, folder: Path, name: str) -> Path:
    """Where a contender keeps the samples of a case."""
    return folder / name / (case.data + ("-zstd" if case.compression else ""))


def warm(case: Case, folder: Path, name: str) -> None:
    """Read the contender's files of a case once, so that nobody's first epoch waits for a disk."""
    home = case.flat if name == "memmap" else folder / name
    for data in home.glob(case.data + "*"):
        for file in data.rglob("*"):
            if file.is_file():
                with open(file, "rb", buffering=0) as stream:
                    while stream.read(1 << 20):
                        pass


def drain(batches: Iterator[Any], seconds: float) -> tuple[int, float, float]:
    """(batches, seconds, CPU seconds of this process) until the end, or until time is up."""
    n, began, cpu = 0, time.perf_counter(), time.process_time()
    took = 0.0
    for _ in batches:
        n += 1
        took = time.perf_counter() - began
        if took > seconds:
            break
    return n, took, time.process_time() - cpu


def measure(
    rival: ModuleType, case: Case, folder: Path, n_workers: int, seconds: float
) -> dict[str, float]:
    """Samples a second of a first epoch, behind its first batch, and of a second one."""
    began, cpu = time.perf_counter(), time.process_time()
    batches = rival.batches(case, folder, n_workers, 0)
    next(batches)
    found = {
        "first_batch_ms": 1e3 * (time.perf_counter() - began),
        "first_batch_cpu_ms": 1e3 * (time.process_time() - cpu),
    }
    n, took, cpu = drain(batches, seconds)
    del batches
    gc.collect()
    samples = n * case.batch_size
    found["samples_per_s"] = samples / took
    found["tokens_per_s"] = samples / took * case.n_tokens / len(case)
    if n_workers:
        return found
    found["cpu_us_per_sample"] = 1e6 * cpu / max(1, samples)
    if case.name in LATER:
        n, took, cpu = drain(rival.batches(case, folder, n_workers, 1), seconds)
        found["later_samples_per_s"] = n * case.batch_size / took
        found["later_cpu_us_per_sample"] = 1e6 * cpu / (n * case.batch_size)
        gc.collect()
        again = replace(case)  # which maps its files anew
        found["step_wait_us"] = 1e6 * waits(rival.batches(again, folder, 0, 0), seconds)
        gc.collect()
    return found


def waits(batches: Iterator[Any], seconds: float) -> float:
    """Seconds that a training step waits for its batch, behind the first, in a first epoch."""
    n, waited, began = 0, 0.0, time.perf_counter()
    values = torch.ones(STEP)
    next(batches)
    asked = time.perf_counter()
    for _ in batches:
        n, waited = n + 1, waited + time.perf_counter() - asked
        torch.mm(values, values)
        asked = time.perf_counter()
        if asked - began > seconds:
            break
    return waited / max(1, n)


def measure_once(rival: ModuleType, case: Case, folder: Path) -> dict[str, float]:
    """Resume in the middle of an epoch, and access by number, one and 32 at a time."""
    found = {}
    if rival.resume is not None:
        resumed = rival.resume(case, folder, len(case) // case.batch_size // 2)
        began = time.perf_counter()
        next(resumed())
        found["resume_ms"] = 1e3 * (time.perf_counter() - began)
        gc.collect()
    if rival.items is not None:
        item = rival.items(case, folder)
        numbers = random.Random(0).choices(range(len(case)), k=1000)
        item(0)
        began = time.perf_counter()
        for number in numbers:
            item(number)
        found["random_samples_per_s"] = len(numbers) / (time.perf_counter() - began)
    if (listed := getattr(rival, "lists", None)) is not None:
        several = listed(case, folder)
        lists = [random.Random(k).choices(range(len(case)), k=32) for k in range(100)]
        several(lists[0])
        began = time.perf_counter()
        for numbers in lists:
            several(numbers)
        found["listed_samples_per_s"] = 32 * len(lists) / (time.perf_counter() - began)
    return found


def versions(rival: ModuleType) -> dict[str, str]:
    """Of the packages that the contender names."""
    found = {}
    for name in rival.packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def run(args: argparse.Namespace, rival: ModuleType, baseline: dict[str, float]) -> dict[str, Any]:
    """All that was asked for, by case."""
    found: dict[str, Any] = {
        "label": rival.label, "versions": versions(rival), "baseline": baseline, "cases": {}
    }  # fmt: skip
    for case in cases(args.cases, args.folder):
        folder = place(case, args.folder, args.name)
        if args.write:
            began = time.perf_counter()
            rival.write(case, folder)
            found["cases"][case.name] = {"write_s": time.perf_counter() - began}
            continue
        if case.compression:  # some keep what they have unpacked next to it
            shutil.copytree(folder, fresh := folder.with_name("fresh"), dirs_exist_ok=True)
            folder = fresh
        for n_workers in args.workers if not case.compression else (0,):
            key = f"{case.name}/{n_workers}"
            warm(case, args.folder, args.name)
            found["cases"][key] = measure(rival, case, folder, n_workers, args.seconds)
            if len(found["cases"]) == 1:
                found["cases"][key] |= memory()
        if args.once and case.name == "text":
            found["cases"]["text/0"] |= measure_once(rival, case, folder)
        if case.compression:
            shutil.rmtree(folder)
    return found


def main() -> None:
    """Run, with everything that is printed on the way sent to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("cases")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=lambda text: [*map(int, text.split(","))], default=[0])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    baseline = memory()
    with contextlib.redirect_stdout(sys.stderr):
        rival = importlib.import_module(f"rival_{args.name}")
        found = run(args, rival, baseline)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
