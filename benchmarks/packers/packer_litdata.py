"""litData: `optimize` over batches of records, fed by shardkit's encode function."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from common import BATCH_ROWS, Result, Run, Sample, Task, load, samples
from litdata import optimize

label = "litData optimize"
packages = ("litdata",)
_encoders: dict[Any, Any] = {}


def encoded(batch: list[dict[str, str]], task: Task) -> Iterator[dict[str, Any]]:
    """The samples of a batch; each process loads its own encoder once."""
    if task not in _encoders:
        _encoders[task] = load(task)[1]
    for ids, labels in samples(_encoders[task], batch):
        yield {"input_ids": ids, "labels": labels}


def start(task: Task) -> Run:
    """The records, cut into batches."""
    records = task.records()
    batches = [records[i : i + BATCH_ROWS] for i in range(0, len(records), BATCH_ROWS)]

    def run() -> Result:
        optimize(
            partial(encoded, task=task), batches, str(task.folder / "data"),
            num_workers=task.workers, chunk_bytes="64MB",
        )  # fmt: skip
        return Result(len(records), 0)

    return run


__all__ = ["Sample", "encoded", "start"]
