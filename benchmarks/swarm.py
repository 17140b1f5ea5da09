"""Many ranks, each with worker processes, that start on one dataset at once.

    python benchmarks/swarm.py [--json] [--ranks 64] [--workers 8] [--run 64] [--at-once 4]
                               [--dataset DIR]

Each simulated rank is a process of its own that reads its first batches of the whole world's
epoch. `--at-once` ranks run at a time (few cores cannot run 64): the arithmetic and the files are
those of all. Without --dataset, one of `--ranks` small shards is made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import load, machine

CHILD = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
import torch
import shardkit.loader
from shardkit import ShardLoader
path, rank, world, workers = sys.argv[1], *map(int, sys.argv[2:5])
began, cpu = time.perf_counter(), time.process_time()
loader = ShardLoader(path, 4, num_workers=workers, rank=rank, world_size=world)
batches = iter(loader)
next(batches)
took = time.perf_counter() - began
def of(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = dict(line.split(":") for line in file.read().splitlines()[1:])
    maps = open(f"/proc/{pid}/maps").read()
    return int(lines["Pss"].split()[0]) / 1024, maps
children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
for _ in range(min(2 * workers, len(loader) - 1)):
    next(batches)
found = [of(pid) for pid in ["self", *children]]
shards = [{line.split()[-1] for line in maps.splitlines() if ".tar" in line} for _, maps in found]
print(json.dumps({
    "first_batch_ms": 1e3 * took,
    "first_batch_cpu_ms": 1e3 * (time.process_time() - cpu),
    "memory_mb": sum(pss for pss, _ in found),
    "memory_of_a_worker_mb": sum(pss for pss, _ in found[1:]) / max(1, len(found) - 1),
    "shards_open_of_the_rank": len(set.union(*shards)),
    "shards_open_of_a_worker_max": max(map(len, shards[1:] or shards)),
    "steps": len(loader),
}))
os._exit(0)
"""


def make(folder: Path, n_shards: int) -> Path:
    """A dataset of so many small shards."""
    from shardkit import pack

    text = "".join(
        json.dumps({"instruction": f"Say {i}.", "output": f"It is {i}."}) + "\n"
        for i in range(n_shards * 128)
    )
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text(text)
    tokenizer = Path(__file__).resolve().parents[1] / "tests" / "data" / "tokenizer"
    pack(
        folder / "rows.jsonl", folder / "data", tokenizer=tokenizer, template="default",
        max_length=256, part_rows=128,
    )  # fmt: skip
    return folder / "data"


def start(
    dataset: Path, ranks: list[int], world_size: int, n_workers: int
) -> list[dict[str, float]]:
    """What these ranks say, started at once."""
    words = [str(dataset), "RANK", str(world_size), str(n_workers)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *(str(rank) if w == "RANK" else w for w in words)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    return [json.loads(process.communicate()[0]) for process in running]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--run", type=int, help="so many of the ranks, evenly chosen; default all")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found, loads = [], []
    with tempfile.TemporaryDirectory() as scratch:
        dataset = args.dataset or make(Path(scratch), args.ranks * args.workers)
        ranks = list(range(0, args.ranks, args.ranks // (args.run or args.ranks)))
        for first in range(0, len(ranks), args.at_once):
            loads.append(load())
            group = ranks[first : first + args.at_once]
            found += start(dataset, group, args.ranks, args.workers)
    if len({each["steps"] for each in found}) != 1:
        raise SystemExit("ranks do not agree on the number of steps")
    metrics = {name: statistics.median(each[name] for each in found) for name in found[0]}
    metrics |= {f"{name}_worst": max(each[name] for each in found) for name in found[0]}
    case = (
        f"{args.ranks} ranks x {args.workers} workers, {len(found)} run, {args.at_once} at a time"
    )
    rows = [{"contender": "shardkit", "case": case, "metrics": metrics}]
    if args.json:
        print(json.dumps({"benchmark": "swarm", "machine": machine(loads), "rows": rows}))
        return
    print(case, "load", loads)
    for name, value in metrics.items():
        print(f"{name:34s} {value:10.1f}")


if __name__ == "__main__":
    main()
