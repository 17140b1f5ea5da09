"""Ready samples a second into shards: ShardWriter, tarfile, and one write() of the same bytes.

    python benchmarks/write.py [--json] [--rounds N] [--samples N] [--folder DIR] [--quick]

Lengths are like Alpaca's (mean 85 tokens). Candidates are interleaved in every round, in one
process; medians; files are flushed to the disk. On a machine that others use, trust CPU time.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import load, machine

from shardkit.format.samples import Samples, slice_samples
from shardkit.format.shard import ShardWriter

BATCH = 2048


def make_samples(n: int) -> Samples:
    """n samples, the first half of each without a label."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.2, 0.7, n).astype(np.int64), 8, 2048)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, 150_000, int(starts[-1]), dtype=np.int32)
    begin = np.repeat(starts[:-1] + lengths // 2, lengths)
    labels = np.where(np.arange(len(ids)) < begin, np.int32(-100), ids)
    zeros = np.zeros(n, np.uint32)
    return Samples(ids, labels, starts, zeros, np.arange(n, dtype=np.uint64), zeros)


def candidates(batches: list[Samples], folder: Path) -> dict[str, Callable[[], None]]:
    """What is measured, by name."""
    identity = {"recipe": {"packing": "none"}}

    def shards(compression: str) -> Callable[[], None]:
        def run() -> None:
            path = folder / "shard-00000.tar"
            with ShardWriter(path, recipe=identity["recipe"], compression=compression) as writer:
                for batch in batches:
                    writer.write(batch)
                writer.close()
            path.unlink()

        return run

    def by_tarfile() -> None:
        path, row = folder / "tarfile.tar", 0
        with open(path, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for batch in batches:
                    for a, b in zip(batch.starts[:-1], batch.starts[1:], strict=True):
                        array = io.BytesIO()
                        np.save(array, np.stack([batch.ids[a:b], batch.labels[a:b]]))
                        member = tarfile.TarInfo(f"{row:08d}.tokens.npy")
                        member.size = array.tell()
                        array.seek(0)
                        tar.addfile(member, array)
                        row += 1
            os.fsync(file.fileno())
        path.unlink()

    writer_path = folder / "kept.tar"
    with ShardWriter(writer_path, recipe=identity["recipe"]) as writer:
        for batch in batches:
            writer.write(batch)
        writer.close()
    data = writer_path.read_bytes()

    def one_write() -> None:
        path = folder / "bytes.tar"
        with open(path, "wb") as file:
            hashlib.sha256(data)
            file.write(data)
            os.fsync(file.fileno())
        path.unlink()

    return {
        "shardkit": shards("none"),
        "shardkit, zstd:1": shards("zstd:1"),
        "tarfile": by_tarfile,
        "limit: sha256 and one write()": one_write,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="a disk to write to")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    n = 3000 if args.quick else args.samples
    samples = make_samples(n)
    batches = [slice_samples(samples, i, min(i + BATCH, n)) for i in range(0, n, BATCH)]
    times: dict[str, list[tuple[float, float]]] = {}
    loads = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = candidates(batches, Path(folder))
        for _ in range(1 if args.quick else args.rounds):
            loads.append(load())
            for label, run in found.items():
                begun, cpu = time.perf_counter(), time.process_time()
                run()
                took = time.perf_counter() - begun, time.process_time() - cpu
                times.setdefault(label, []).append(took)
    rows: list[dict[str, Any]] = []
    for label, both in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*both, strict=True))
        metrics = {"samples_per_s": round(n / wall), "samples_per_cpu_s": round(n / cpu)}
        rows.append({"contender": label, "case": "write", "metrics": metrics})
    if args.json:
        print(json.dumps({"benchmark": "write", "machine": machine(loads), "rows": rows}, indent=1))
        return
    print(f"{n} samples, {len(samples.ids) / n:.0f} tokens on average; load {loads}")
    for row in rows:
        rates = row["metrics"]
        print(
            f"{row['contender']:32} {rates['samples_per_s']:9} samples/s "
            f"{rates['samples_per_cpu_s']:9} samples/CPU-s"
        )


if __name__ == "__main__":
    main()
