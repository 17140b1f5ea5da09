"""deepspeed.initialize(training_data=...) on the ranks that torchrun starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch

from shardkit import ShardDataset, ShardTable
from shardkit.errors import UsageError
from shardkit.integrations.deepspeed import without_shm_build


def initialize(**options: Any) -> Any:
    model = torch.nn.Linear(4, 4)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, **options)


def main() -> None:
    path, out = sys.argv[1], Path(sys.argv[2])
    without_shm_build()
    deepspeed.init_distributed(dist_backend="gloo")
    found: dict[str, object] = {}
    try:
        initialize(training_data=ShardDataset(path))
    except UsageError as err:
        found["dataset"] = err.describe()
    table = ShardTable(path)
    _, _, loader, _ = initialize(training_data=table, collate_fn=table.collate)
    found["keys"] = [key for batch in loader for key in batch["keys"]]
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
