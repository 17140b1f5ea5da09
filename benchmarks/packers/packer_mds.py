"""mosaicml-streaming: MDSWriter, fed by shardkit's encode function."""

from __future__ import annotations

from common import Result, Run, Task, load, samples
from streaming import MDSWriter

label = "MDSWriter"
packages = ("mosaicml-streaming",)
workers = (1,)


def start(task: Task) -> Run:
    """The encoder, ready."""
    _, encoder = load(task)

    def run() -> Result:
        records, n_tokens = task.records(), 0
        columns = {"input_ids": "ndarray:int32", "labels": "ndarray:int32"}
        with MDSWriter(out=str(task.folder / "data"), columns=columns) as writer:
            for ids, labels in samples(encoder, records):
                writer.write({"input_ids": ids, "labels": labels})
                n_tokens += len(ids)
        return Result(len(records), n_tokens)

    return run
