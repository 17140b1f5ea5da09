"""One step of tiny VLMs under several ZeRO stages in one launch: rank 0 has pictures, rank 1 not.

Writes the weights after the step, as one vector for each family and stage.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import deepspeed
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from tiny_vlm import tiny_model

from shardkit import ShardLoader
from shardkit.integrations.deepspeed import without_shm_build


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    without_shm_build()
    rank = int(os.environ["RANK"])
    for name in sys.argv[3:]:
        loader = ShardLoader(
            folder / f"{name}-data", 2, shuffle=False, rank=rank, world_size=2,
            processor=folder / name, image_pad="always-one",
        )  # fmt: skip
        batch = loader.model_inputs(next(iter(loader)))
        assert (batch["labels"] != -100).any()
        for stage in (0, 1, 2, 3):
            model = copy.deepcopy(tiny_model(name)).train()
            engine, *_ = deepspeed.initialize(
                model=model,
                model_parameters=model.parameters(),
                optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
                config={
                    "train_micro_batch_size_per_gpu": 2,
                    "zero_optimization": {"stage": stage},
                    "zero_allow_untested_optimizer": True,
                    "steps_per_print": 10**9,
                },
            )
            loss = engine(**batch).loss
            engine.backward(loss)
            engine.step()
            parameters = list(engine.module.parameters())
            with deepspeed.zero.GatheredParameters(parameters, enabled=stage == 3):
                weights = torch.cat([p.detach().flatten().float() for p in parameters])
            if rank == 0:
                np.save(out / f"{name}-{stage}.npy", weights.numpy())


if __name__ == "__main__":
    main()
