"""datasets, map-style: save_to_disk, NumPy format, and a torch DataLoader that shuffles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from common import Case, Opener
from torch.utils.data import DataLoader

label = "datasets (map)"
packages = ("datasets", "pyarrow")


def write(case: Case, folder: Path) -> None:
    """Arrow files."""
    features = dict.fromkeys(case.fields, datasets.Sequence(datasets.Value("int32")))
    if case.has_images:
        features["image"] = datasets.Value("binary")

    def rows() -> Iterator[dict[str, Any]]:
        return (case.columns(i) for i in range(len(case)))

    made = datasets.Dataset.from_generator(
        rows, features=datasets.Features(features), cache_dir=str(folder) + "-cache"
    )
    made.save_to_disk(str(folder))


def opened(folder: Path) -> Any:
    """The dataset, whose rows are NumPy arrays."""
    return datasets.load_from_disk(str(folder)).with_format("numpy")


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """One epoch."""
    return iter(
        DataLoader(
            opened(folder), case.batch_size, shuffle=True, num_workers=n_workers,
            collate_fn=case.collate_columns, drop_last=True,
        )
    )  # fmt: skip


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """It has no state: the sampler is made again, and cut."""

    def made() -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(len(case))[n_batches * case.batch_size :]
        rest = DataLoader(
            opened(folder), case.batch_size, sampler=order.tolist(),
            collate_fn=case.collate_columns, drop_last=True,
        )  # fmt: skip
        return iter(rest)

    return made


def items(case: Case, folder: Path) -> Any:
    """By number."""
    return opened(folder).__getitem__
