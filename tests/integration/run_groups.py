"""Data-parallel groups of 2 among 4 ranks, in every form that `group=` takes; keys go into JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from shardkit import ShardLoader
from shardkit.integrations.deepspeed import without_shm_build


class ModelParallel:
    """Ranks 0 1 and 2 3 hold one model each, as Megatron's mpu says it."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh

    def get_data_parallel_rank(self) -> int:
        return int(self.mesh["dp"].get_local_rank())

    def get_data_parallel_world_size(self) -> int:
        return int(self.mesh["dp"].size())

    def get_data_parallel_group(self) -> Any:
        return self.mesh["dp"].get_group()

    def get_model_parallel_rank(self) -> int:
        return int(self.mesh["tp"].get_local_rank())

    def get_model_parallel_world_size(self) -> int:
        return int(self.mesh["tp"].size())

    def get_model_parallel_group(self) -> Any:
        return self.mesh["tp"].get_group()


def keys_of(path: str, group: object) -> list[list[str]]:
    return [batch["keys"] for batch in ShardLoader(path, 2, seed=1, group=group, sample_keys=True)]


def engine_of(mpu: ModelParallel) -> Any:
    model = torch.nn.Linear(4, 4)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=mpu)[0]


def main() -> None:
    path, out = sys.argv[1], Path(sys.argv[2])
    without_shm_build()
    deepspeed.init_distributed(dist_backend="gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    hybrid = init_device_mesh("cpu", (1, 2, 2), mesh_dim_names=("dp_replicate", "dp_shard", "cp"))
    found = {
        "mesh": keys_of(path, mesh),
        "part of a mesh": keys_of(path, mesh["dp"]),
        "process group": keys_of(path, mesh["dp"].get_group()),
        "hybrid mesh": keys_of(path, hybrid),
    }
    mpu = ModelParallel(mesh)
    assert engine_of(mpu).dp_world_size == 2
    found["mpu of DeepSpeed"] = keys_of(path, mpu)
    sequence_mesh = deepspeed.comm.initialize_mesh_device(
        (2, 2), ("data_parallel", "sequence_parallel")
    )  # as deepspeed.initialize(mesh_param=(2, 2)) does
    found["sequence parallel mesh of DeepSpeed"] = keys_of(path, sequence_mesh)
    rank = int(os.environ["RANK"])
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
