"""Where the loader's time goes: CPU microseconds a batch, stage by stage, in one thread.

    python benchmarks/where.py [--json] [--repeats N] [--folder DIR] [--quick]

Every line does what the line before does and one stage more, so a stage costs the difference. The
fastest of N repeats of a whole epoch counts, in CPU time of the thread. --folder: what
read.py --folder left behind (shardkit/plain and shardkit/packed); without it small data is packed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import load, machine
from read import prepare

from shardkit import ShardLoader, load_manifest
from shardkit.loader.batch_maker import BatchMaker
from shardkit.loader.batches import Share, read_batches
from shardkit.loader.reader import Reader

BATCH = 32


def open_loader(folder: Path) -> ShardLoader:
    """One rank, no thread; smaller batches where there are only few samples."""
    n = load_manifest(folder).n_samples
    return ShardLoader(folder, max(1, min(BATCH, n // 4)), rank=0, world_size=1, prefetch=0)


def stages(folder: Path) -> dict[str, Callable[[int], Iterable[Any]]]:
    """From the name of a stage to the items of epoch k, made as far as that stage."""
    loader = open_loader(folder)
    size, dataset = loader.batch_size, loader.dataset
    share = Share(dataset.world, size, origin=0, n_steps=len(loader))

    def order(epoch: int) -> Any:
        return dataset.order(loader.arrangement, epoch)

    def look_up(epoch: int, reader: Reader) -> Iterator[Any]:
        for numbers, rows in located(epoch):
            yield reader.find(numbers, rows)

    def located(epoch: int) -> Iterator[Any]:
        each = order(epoch)
        step = max(1, dataset.reader.block_samples // size)
        for first in range(0, len(loader), step):
            positions = share.positions(first, min(step, len(loader) - first))
            yield each.locate(positions.ravel())

    def read(epoch: int, reader: Reader) -> Iterator[Any]:
        return read_batches(reader, order(epoch), share)

    def padded(epoch: int, reader: Reader) -> Iterator[Any]:
        return map(BatchMaker(dataset.padding), read(epoch, reader))

    def handed_out(epoch: int) -> Iterator[Any]:
        loader.set_epoch(epoch)
        return iter(loader)

    for _ in padded(0, dataset.reader):  # every hash is checked now
        pass
    return {
        "order of the epoch": located,
        "+ look-up in the index": lambda epoch: look_up(epoch, dataset.reader),
        "+ rows": lambda epoch: read(epoch, dataset.reader),
        "+ padding to int64 tensors": lambda epoch: padded(epoch, dataset.reader),
        "+ handed out: a later epoch": handed_out,
        "+ hashes checked: a first epoch": lambda epoch: padded(epoch, Reader(dataset.members)),
    }


def cost(items: Callable[[int], Iterable[Any]], repeats: int) -> float:
    """CPU seconds of the quickest of some epochs."""
    best = float("inf")
    for epoch in range(1, repeats + 1):
        began = time.thread_time()
        for _ in items(epoch):
            pass
        best = min(best, time.thread_time() - began)
    return best


def main() -> None:
    """Measure every stage of both kinds of data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if args.folder is None:
            prepare(folder, None)
        rows, loads = [], [load()]
        for case, data in (("text", "plain"), ("packed", "packed")):
            n = len(open_loader(folder / "shardkit" / data))
            for stage, items in stages(folder / "shardkit" / data).items():
                seconds = cost(items, 1 if args.quick else args.repeats)
                metrics = {"cpu_us_per_batch": 1e6 * seconds / n}
                rows.append({"contender": case, "case": stage, "metrics": metrics})
        loads.append(load())
    report = {"benchmark": "where", "machine": machine(loads), "rows": rows}
    if args.json:
        print(json.dumps(report))
        return
    for row in rows:
        print(f"{row['contender']:8}{row['case']:36}{row['metrics']['cpu_us_per_batch']:8.1f}")


if __name__ == "__main__":
    main()
