"""Grain over an ArrayRecord file: shuffle, map, batch; its reading threads or processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from common import Case, Opener, Sample, after

label = "Grain + ArrayRecord"
packages = ("grain", "array_record")


def write(case: Case, folder: Path) -> None:
    """A record: its length as int32, the token rows, the picture."""
    folder.mkdir(parents=True)
    options = f"group_size:1{',zstd:3' if case.compression else ',uncompressed'}"
    writer = ArrayRecordWriter(str(folder / "data.array_record"), options)
    for i in range(len(case)):
        rows, image = case.sample(i)
        length = np.array([len(rows[0])], np.int32)
        writer.write(length.tobytes() + np.asarray(rows).tobytes() + (image or b""))
    writer.close()


def dataset(case: Case, folder: Path, n_workers: int, epoch: int = 0) -> Any:
    """The pipeline."""

    def parse(record: bytes) -> Sample:
        end = 4 + 4 * len(case.fields) * int(np.frombuffer(record, np.int32, 1)[0])
        rows = np.frombuffer(record[4:end], np.int32).reshape(len(case.fields), -1)
        return rows, record[end:] if case.has_images else None

    source = ArrayRecordDataSource([str(folder / "data.array_record")])
    made = (
        grain.MapDataset.source(source)
        .seed(epoch)
        .shuffle()
        .map(parse)
        .batch(case.batch_size, drop_remainder=True, batch_fn=case.collate)
        .to_iter_dataset()
    )
    if n_workers:
        made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=n_workers))
    return made


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """One epoch."""
    return iter(dataset(case, folder, n_workers, epoch))


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """Its own state."""
    before = after(n_batches, iter(dataset(case, folder, 0)))
    state = before.get_state()  # type: ignore[attr-defined]

    def made() -> Iterator[Any]:
        steps = iter(dataset(case, folder, 0))
        steps.set_state(state)
        return steps

    return made


def items(case: Case, folder: Path) -> Any:
    """Records by number."""
    return ArrayRecordDataSource([str(folder / "data.array_record")]).__getitem__
