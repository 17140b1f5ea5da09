"""mosaicml-streaming: MDSWriter, StreamingDataset and its StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import Case, Opener, after
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

label = "MDS (mosaicml-streaming)"
packages = ("mosaicml-streaming",)


def write(case: Case, folder: Path) -> None:
    """An array column for each token row."""
    columns = dict.fromkeys(case.fields, "ndarray:int32")
    if case.has_images:
        columns["image"] = "bytes"
    with MDSWriter(
        out=str(folder), columns=columns, compression=case.compression or None
    ) as writer:
        for i in range(len(case)):
            writer.write(case.columns(i))


def loader(case: Case, folder: Path, n_workers: int) -> StreamingDataLoader:
    """Local shards, shuffled."""
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), batch_size=case.batch_size, shuffle=True)
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
    del before

    def opened() -> Iterator[Any]:
        made = loader(case, folder, 0)
        made.load_state_dict(state)
        return iter(made)

    return opened


def items(case: Case, folder: Path) -> Any:
    """By number."""
    clean_stale_shared_memory()
    return StreamingDataset(local=str(folder), batch_size=case.batch_size).__getitem__
