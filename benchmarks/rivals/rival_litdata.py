"""litData: optimize(), StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common import Case, Opener, after
from litdata import StreamingDataLoader, StreamingDataset, optimize

label = "litData"
packages = ("litdata",)


def row(case: Case, i: int) -> dict[str, Any]:
    """What optimize() stores of sample i."""
    return case.columns(i)


def write(case: Case, folder: Path) -> None:
    """Chunks of 64 MB, as its documents do."""
    optimize(
        fn=partial(row, case), inputs=list(range(len(case))), output_dir=str(folder),
        chunk_bytes="64MB", compression=case.compression or None, num_workers=1,
    )  # fmt: skip


def loader(case: Case, folder: Path, n_workers: int) -> StreamingDataLoader:
    """Local chunks, shuffled."""
    dataset = StreamingDataset(str(folder), shuffle=True, drop_last=True)
    return StreamingDataLoader(
        dataset, batch_size=case.batch_size, num_workers=n_workers, drop_last=True,
        collate_fn=case.collate_columns,
    )  # fmt: skip


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """One epoch."""
    return iter(loader(case, folder, n_workers))


def resume(case: Case, folder: Path, n_batches: int) -> Opener:
    """Its own state."""
    before = loader(case, folder, 0)
    after(n_batches, iter(before))
    state = before.state_dict()

    def opened() -> Iterator[Any]:
        made = loader(case, folder, 0)
        made.load_state_dict(state)
        return iter(made)

    return opened


def items(case: Case, folder: Path) -> Any:
    """By number."""
    return StreamingDataset(str(folder)).__getitem__
