"""Real accelerate on the ranks that torchrun starts: which set-ups are refused, which pass.

Each rank writes for each set-up the keys (or first ids) that it saw, or the error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from shardkit import ShardDataset, ShardLoader
from shardkit.errors import UsageError
from shardkit.integrations.accelerate import AccelerateLoader


def outcome(batches: Any) -> object:
    try:
        return [key for batch in batches for key in batch["keys"]]
    except UsageError as err:
        return err.message


def main() -> None:
    path, out = Path(sys.argv[1]), Path(sys.argv[2])
    accelerator = Accelerator(cpu=True)
    accelerator.dataloader_config = DataLoaderConfiguration(dispatch_batches=False)
    dataset = ShardDataset(path)
    found: dict[str, object] = {"ranks": [dataset.world.rank, dataset.world.size]}

    def plain(n_workers: int, **options: Any) -> Any:
        loader = DataLoader(
            dataset, batch_size=2, num_workers=n_workers, collate_fn=dataset.collate, **options
        )
        return accelerator.prepare(loader)

    found["shard"] = outcome(plain(0))
    found["shard, forked worker"] = outcome(plain(1, multiprocessing_context="fork"))
    found["shard, spawned worker"] = outcome(plain(1, multiprocessing_context="spawn"))
    loader = accelerator.prepare(ShardLoader(path, 2, sample_keys=True))
    found["ShardLoader prepared"] = outcome(loader)
    whole = AccelerateLoader(ShardLoader(path, 2).for_eval())
    gathered: list[int] = []
    for batch in whole:
        sums = (batch["input_ids"] * batch["attention_mask"]).sum(1)
        gathered += accelerator.gather_for_metrics(sums).tolist()
    found["gathered"] = gathered
    accelerator.dataloader_config = DataLoaderConfiguration(dispatch_batches=None)
    if accelerator.process_index == 0:  # the others wait for it
        found["dispatch"] = outcome(plain(0))
        found["dispatch, forked worker"] = outcome(plain(1, multiprocessing_context="fork"))
        found["dispatch, spawned worker"] = outcome(plain(1, multiprocessing_context="spawn"))
    (out / f"rank{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()
    os._exit(0)


if __name__ == "__main__":
    main()
