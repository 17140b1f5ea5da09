"""What a process pays once: imports, its first batch, resuming, knowing its tokenizer.

Every figure is of a fresh interpreter, whose bytecode and files were read once before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

N_RANKS = 8
CLOCKS = """
import json, sys, time
def clocks():
    return time.perf_counter(), time.process_time()
def since(began):
    return [1e3 * (now - then) for now, then in zip(clocks(), began)]
"""
IMPORT = """
began = clocks()
import shardkit
print(json.dumps(since(began)))
"""
IMPORT_TORCH = IMPORT.replace("shardkit", "torch")
IMPORT_LOADER = "import torch\n" + IMPORT.replace("shardkit", "shardkit.loader")
FIRST_BATCH = """
import torch, shardkit.loader
from shardkit.loader import ShardLoader
def loader():
    return ShardLoader(sys.argv[1], 32, rank=0, world_size=1)
part = float(sys.argv[2])
state = None
if part:
    before = loader()
    state = before.state_dict() | {"position": int(len(before) * part) * 32}
    del before
began = clocks()
made = loader()
if state is not None:
    made.load_state_dict(state)
batches = iter(made)
next(batches)
first = since(began)
began = clocks()
for _ in range(9):
    next(batches, None)
print(json.dumps([*first, *since(began)]))
"""
TOKENIZER = """
from transformers import AutoTokenizer
from shardkit.tokens.load import identity_of
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
began = clocks()
identity_of(tokenizer)
print(json.dumps(since(began)))
"""
Figures = dict[str, float]


def start(code: str, *words: str, cache: str | None = None) -> subprocess.Popen[str]:
    """A fresh interpreter that may keep and use bytecode, as an installed library has it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    if cache is not None:
        environment["SHARDKIT_CACHE"] = cache
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CLOCKS + code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def said(process: subprocess.Popen[str], told: str | None = None) -> list[float]:
    """The figures that it prints."""
    found: list[float] = json.loads(process.communicate(told)[0])
    return found


def summary(runs: Sequence[Sequence[float]]) -> Figures:
    """Medians over the runs, and the least wall time, which other processes disturb least."""
    columns = [*zip(*runs, strict=True)]
    found = {"ms": median(columns[0]), "least_ms": min(columns[0]), "cpu_ms": median(columns[1])}
    if len(columns) > 2:
        found["next_9_batches_ms"] = median(columns[2])
    return found


def measure(datasets: Mapping[str, Path], repeats: int, n_warm: int = 1) -> dict[str, Figures]:
    """Imports, and first batches of each dataset, interleaved; the first rounds do not count."""
    cases: dict[str, tuple[str, ...]] = {
        "import shardkit": (IMPORT,),
        "import torch": (IMPORT_TORCH,),
        "import shardkit.loader, after torch": (IMPORT_LOADER,),
    }
    for label, path in datasets.items():
        cases[f"{label}: first batch, after imports"] = (FIRST_BATCH, str(path), "0")
        cases[f"{label}: opened and resumed at 50 %"] = (FIRST_BATCH, str(path), "0.5")
        cases[f"{label}: opened and resumed at 90 %"] = (FIRST_BATCH, str(path), "0.9")
    rounds = [
        {case: said(start(*words)) for case, words in cases.items()}
        for _ in range(n_warm + repeats)
    ]
    return {case: summary([found[case] for found in rounds[n_warm:]]) for case in cases}


def measure_ranks(tokenizer: str) -> dict[str, Figures]:
    """Eight ranks that are given one loaded tokenizer at once: what its identity costs each."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "none").write_text("")
        for case, place in (
            ("each by itself", f"{cache}/none"),
            ("together, for the first time", cache),
            ("together, known on this node", cache),
        ):
            ranks = [start(TOKENIZER, tokenizer, cache=place) for _ in range(N_RANKS)]
            for rank in ranks:
                assert rank.stdout is not None
                rank.stdout.readline()
            for rank in ranks:  # all wait for this
                assert rank.stdin is not None
                rank.stdin.write("\n")
                rank.stdin.flush()
            name = f"tokenizer {Path(tokenizer).name}, {N_RANKS} ranks: {case}"
            runs = [said(rank) for rank in ranks]
            found[name] = summary(runs) | {"cpu_ms_together": sum(cpu for _, cpu in runs)}
    return found
