"""Lance: its map-style dataset for torch, taking a batch of rows at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from common import Case, Opener, Sample
from lance.torch.data import SafeLanceDataset, get_safe_loader
from torch.utils.data import DataLoader

label = "Lance"
packages = ("pylance",)


class Rows(SafeLanceDataset):  # type: ignore[misc]
    """SafeLanceDataset, but to NumPy arrays instead of Python lists: several times faster."""

    fields: tuple[str, ...] = ()

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        if self._ds is None:
            self._ds = lance.dataset(self.uri)
        table = self._ds.take(indices)
        columns = [table[name].combine_chunks() for name in self.fields]
        rows = zip(*([row.values.to_numpy() for row in column] for column in columns), strict=True)
        images = (
            table["image"].to_pylist() if "image" in table.column_names else [None] * len(table)
        )
        return list(zip(rows, images, strict=True))


def write(case: Case, folder: Path) -> None:
    """A list column for each token row."""
    kinds = dict.fromkeys(case.fields, pa.list_(pa.int32()))
    if case.has_images:
        kinds["image"] = pa.large_binary()
    schema = pa.schema(kinds)

    def tables() -> Iterator[pa.RecordBatch]:
        for begin in range(0, len(case), 1024):
            rows = [case.columns(i) for i in range(begin, min(begin + 1024, len(case)))]
            yield pa.RecordBatch.from_pylist(rows, schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, tables()), str(folder))


def opened(case: Case, folder: Path) -> Rows:
    """The dataset."""
    made = Rows(str(folder))
    made.fields = case.fields
    return made


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """One epoch; workers are spawned, as it asks for."""
    options: dict[str, Any] = {
        "batch_size": case.batch_size, "shuffle": True, "drop_last": True,
        "collate_fn": case.collate,
    }  # fmt: skip
    if n_workers:
        return iter(get_safe_loader(opened(case, folder), num_workers=n_workers, **options))
    return iter(DataLoader(opened(case, folder), **options))


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """It has no state: the sampler is made again, and cut."""

    def made() -> Iterator[Any]:
        order = range(n_batches * case.batch_size, len(case))
        return iter(
            DataLoader(
                opened(case, folder), case.batch_size, sampler=order, collate_fn=case.collate
            )
        )

    return made


def items(case: Case, folder: Path) -> Any:
    """By number."""
    return opened(case, folder).__getitem__
