"""How fast a run starts and resumes, and what a plan costs, at sizes that no disk here holds.

    python benchmarks/start.py [--json] [--quick]

Times are wall time of one process; memory is the growth of its peak. The load of the machine is
printed. Large datasets are synthetic manifests; all arithmetic is the real code.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain

import numpy as np
from machine import load, machine

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
        "n_samples": 10_000, "n_tokens": 10**6, "n_supervised": 10**5, "n_images": 0,
        "longest": 2048, "n_bytes": 64 << 20, "sha256": "0" * 64,
    }  # fmt: skip
    shards = [
        ShardEntry(name=f"shard-{i:05d}.tar", footer=f"{i:016x}", **entry)  # type: ignore[arg-type]
        for i in range(n_shards)
    ]
    identity = {"recipe": {"packing": "none"}}
    return Manifest(
        fingerprint=fingerprint_of(identity),
        content=content_of(shards),
        identity=identity,
        writer="",
        engine="",
        sources=[],
        shards=shards,
    ).to_bytes()


def import_ms(statement: str, *, after: str = "pass") -> float:
    """Milliseconds that a fresh interpreter takes for a statement: the median of three."""
    code = f"{after}; import time; t = time.perf_counter(); {statement}; "
    command = [sys.executable, "-c", f"{code}print(time.perf_counter() - t)"]
    took = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    return 1e3 * sorted(took)[1]


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    scale = 100 if args.quick else 1
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
    touched = [len(order.shards_of_lane(lane)) for lane in range(0, 1024, 31)]
    imports = {
        "import shardkit": import_ms("import shardkit"),
        "import torch": import_ms("import torch"),
        "import shardkit.loader, after torch": import_ms(
            "import shardkit.loader", after="import torch"
        ),
    }
    node = of_a_node(order, 100_000 // scale)
    if args.json:
        rows: list[dict[str, object]] = [
            {"contender": "shardkit", "case": label, "metrics": {"ms": took, "mb": memory}}
            for label, (took, memory) in found.items()
        ]
        rows += [
            {"contender": "shardkit", "case": label, "metrics": {"ms": took}}
            for label, took in imports.items()
        ]
        rows.append({"contender": "shardkit", "case": "1,024 ranks on 128 nodes", "metrics": node})
        print(json.dumps({"benchmark": "start", "machine": machine([load()]), "rows": rows}))
        return
    print(f"load {os.getloadavg()[0]:.1f}")
    for label, (took, memory) in found.items():
        print(f"{label:62s} {took:9.1f} ms {memory:8.1f} MB")
    for label, took in imports.items():
        print(f"{label:62s} {took:9.1f} ms")
    print(json.dumps(node))
    print(f"shards that a rank of 1,024 touches in an epoch: {min(touched)} to {max(touched)}")


if __name__ == "__main__":
    main()
