"""datasets, iterable: the same files, a shuffle buffer of 1,000, and its own state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import rival_datasets
from common import Case, Opener, after
from torch.utils.data import DataLoader

label = "datasets (iterable)"
packages = rival_datasets.packages
write = rival_datasets.write


def opened(folder: Path, epoch: int = 0) -> Any:
    """Read in order through the buffer."""
    rows = datasets.load_from_disk(str(folder))
    return (
        rows.to_iterable_dataset(num_shards=min(8, len(rows)))
        .shuffle(seed=epoch, buffer_size=1000)
        .with_format("numpy")
    )


def loader(case: Case, dataset: Any, n_workers: int) -> Any:
    """One epoch."""
    return DataLoader(
        dataset, case.batch_size, num_workers=n_workers, collate_fn=case.collate_columns,
        drop_last=True,
    )  # fmt: skip


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """One epoch."""
    return iter(loader(case, opened(folder, epoch), n_workers))


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """Its own state (the samples that were in the shuffle buffer are not in it)."""
    before = opened(folder)
    after(n_batches, iter(loader(case, before, 0)))
    state = before.state_dict()

    def made() -> Iterator[Any]:
        dataset = opened(folder)
        dataset.load_state_dict(state)
        return iter(loader(case, dataset, 0))

    return made


items = None
