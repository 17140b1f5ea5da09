"""webdataset: ShardWriter, and WebDataset with a shuffle buffer of 1,000."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from common import Case, Sample

label = "webdataset"
packages = ("webdataset",)


def write(case: Case, folder: Path, picture: str = "jpg") -> None:
    """A member for each token row and picture."""
    folder.mkdir(parents=True)
    n_per_shard = max(1, len(case) // 7)
    with wds.ShardWriter(str(folder / "shard-%05d.tar"), maxcount=n_per_shard, verbose=0) as sink:
        for i in range(len(case)):
            row = case.columns(i)
            sample = {f"{name}.npy": np.asarray(row[name]) for name in case.fields}
            if case.has_images:
                sample[picture] = row["image"]
            sink.write({"__key__": f"{i:08d}", **sample})


def batches(case: Case, folder: Path, n_workers: int, epoch: int) -> Iterator[Any]:
    """One epoch, read in order of the shards."""

    def take(sample: dict[str, Any]) -> Sample:
        return [sample[f"{name}.npy"] for name in case.fields], sample.get("jpg")

    dataset = (
        wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=100, seed=epoch)
        .shuffle(1000)
        .decode()
        .map(take)
        .batched(case.batch_size, collation_fn=case.collate, partial=False)
    )
    if not n_workers:
        return iter(dataset)
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=n_workers))


resume = items = None
