"""How fast a run starts and resumes, and what a plan costs, at sizes that no disk here holds.

    python benchmarks/start.py [--json] [--quick] [--small DIR] [--thousand DIR]
                               [--tokenizer DIR ...] [--repeats 11]

First batches are those of real datasets, each in a fresh process (fresh.py): a small one and one of
1,000 shards, which are made where none is given. `ms` is the median of wall time. Plans are of
synthetic manifests, and all arithmetic is the real code; memory is the growth of the peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
from fresh import measure, measure_ranks
from machine import load, machine
from swarm import make

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from synthetic import make_recipe

from shardkit.format.manifest import Manifest, ShardEntry, content_of, fingerprint_of
from shardkit.order.epoch import EpochOrder, batch_positions


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(milliseconds, megabytes that the peak grew by)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    run()
    took = time.perf_counter() - begun
    return 1e3 * took, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def plan(n_shards: int, per_shard: int, world_size: int, position: float) -> Callable[[], None]:
    """Make the order of an epoch and the positions of 128 batches of one rank from a place on."""

    def run() -> None:
        sizes = np.full(n_shards, per_shard)
        order = EpochOrder(sizes, seed=1, epoch=3, lanes=world_size, chunk=8)
        step = int(order.n_samples * position) // (8 * world_size)
        rows = batch_positions(step, 128, batch_size=8, rank=world_size - 1, world_size=world_size)
        order.locate(rows[rows < order.n_samples])

    return run


def manifest_bytes(n_shards: int) -> bytes:
    """A manifest of so many shards."""
    entry = {
        "n_samples": 10_000, "n_tokens": 10**6, "length": 10**6, "n_supervised": 10**5,
        "n_images": 0, "longest": 2048, "n_bytes": 64 << 20, "sha256": "0" * 64,
    }  # fmt: skip
    shards = [
        ShardEntry(name=f"shard-{i:05d}.tar", footer=f"{i:016x}", **entry)  # type: ignore[arg-type]
        for i in range(n_shards)
    ]
    identity: dict[str, object] = {"format": 1, "recipe": make_recipe(), "sources": []}
    identity |= {"layout": {"shard_size": 1, "part_rows": 1, "part_bytes": 1}, "shuffle_seed": None}
    return Manifest(
        fingerprint=fingerprint_of(identity),
        content=content_of(shards),
        identity=identity,
        writer="",
        engine="",
        sources=[],
        shards=shards,
    ).to_bytes()


def of_a_node(order: EpochOrder, n_shards: int) -> dict[str, float]:
    """What 8 ranks of 1,024 read in an epoch, of shards of 64 MB, and the least that can be."""
    shard_gb = (64 << 20) / 1e9
    lanes = [order.shards_of_lane(lane).tolist() for lane in range(1024)]
    nodes = [{*chain.from_iterable(lanes[at : at + 8])} for at in range(0, 1024, 8)]
    return {
        "shards_per_rank": max(map(len, lanes)),
        "shards_per_node": max(map(len, nodes)),
        "gb_per_node": max(map(len, nodes)) * shard_gb,
        "least_gb_per_node": n_shards / 128 * shard_gb,
    }


def plans(scale: int) -> dict[str, dict[str, float]]:
    """Orders and manifests of sizes that no disk here holds."""
    data = manifest_bytes(100_000 // scale)
    runs = {
        "10 M samples in 1,000 shards, 8 ranks: plan and 128 batches": plan(1000, 10_000, 8, 0),
        "1 B samples in 100,000 shards, 1,024 ranks: the same": plan(
            100_000 // scale, 10_000, 1024, 0
        ),
        "the same, resumed at 10 %": plan(100_000 // scale, 10_000, 1024, 0.1),
        "the same, resumed at 90 %": plan(100_000 // scale, 10_000, 1024, 0.9),
        "manifest of 100,000 shards: parse and check": lambda: Manifest.from_bytes(data, "m"),
    }
    plan(10, 10, 2, 0)()
    found = {label: timed(run) for label, run in runs.items()}
    order = EpochOrder(np.full(100_000 // scale, 10_000), seed=1, epoch=0, lanes=1024, chunk=8)
    return {label: {"ms": took, "mb": memory} for label, (took, memory) in found.items()} | {
        "1,024 ranks on 128 nodes": of_a_node(order, 100_000 // scale)
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--small", type=Path, help="a dataset of a few shards")
    parser.add_argument("--thousand", type=Path, help="a dataset of 1,000 shards")
    parser.add_argument("--tokenizer", action="append", default=[], help="a folder; repeatable")
    parser.add_argument("--repeats", type=int, default=11, help="fresh processes of each figure")
    args = parser.parse_args()
    before = load()
    found = plans(100 if args.quick else 1)
    with tempfile.TemporaryDirectory() as scratch:
        datasets = {"small dataset": args.small or make(Path(scratch, "small"), 7)}
        if args.quick:
            found |= measure(datasets, 1, n_warm=0)
        else:
            datasets["1,000 shards"] = args.thousand or make(Path(scratch, "thousand"), 1000)
            found |= measure(datasets, args.repeats)
    for tokenizer in args.tokenizer:
        found |= measure_ranks(tokenizer)
    if args.json:
        rows = [
            {"contender": "shardkit", "case": case, "metrics": metrics}
            for case, metrics in found.items()
        ]
        print(
            json.dumps({"benchmark": "start", "machine": machine([before, load()]), "rows": rows})
        )
        return
    print(f"load {before} to {load()}")
    for case, metrics in found.items():
        print(f"{case:62s}", *(f"{name} {value:.1f}" for name, value in metrics.items()))


if __name__ == "__main__":
    main()
