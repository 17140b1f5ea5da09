"""The limit: flat files that are mapped, and the loop that pads a batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Case, Opener
from torch.utils.data import DataLoader, Dataset

label = "memmap loop (the limit)"
packages = ("numpy", "torch")


class Samples(Dataset[Any]):
    """Samples by number, as a plain torch Dataset."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __len__(self) -> int:
        return len(self.case)

    def __getitem__(self, i: int) -> Any:
        return self.case.sample(i)


def write(case: Case, folder: Path) -> None:
    """The files are there already."""


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """A permutation, and in one process no DataLoader."""
    if n_workers:
        return iter(
            DataLoader(
                Samples(case), case.batch_size, shuffle=True, num_workers=n_workers,
                collate_fn=case.collate, drop_last=True,
            )
        )  # fmt: skip
    return _from(case, 0, epoch)


def _from(case: Case, first: int, epoch: int = 0) -> Iterator[Any]:
    order = np.random.default_rng(epoch).permutation(len(case)).tolist()
    size = case.batch_size
    for begin in range(first * size, len(case) - size + 1, size):
        yield case.collate([case.sample(i) for i in order[begin : begin + size]])


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """The permutation is made again, and entered further on."""
    return lambda: _from(case, n_batches)


def items(case: Case, folder: Path) -> Any:
    """By number."""
    return case.sample


def lists(case: Case, folder: Path) -> Any:
    """One after the other."""
    return lambda numbers: [case.sample(i) for i in numbers]
