"""Which part of every global batch is this process to read? Found without any communication.

And is a trainer about to share out again what is shared out already?
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from shardkit.errors import UsageError

SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
}
"""torchrun's variable → Slurm's. The size is that of the step, which srun alone sets: a batch
script has SLURM_PROCID and SLURM_NTASKS too, and is one process."""
_ENVIRONMENTS = (
    ("RANK", "WORLD_SIZE"),
    (SLURM["RANK"], SLURM["WORLD_SIZE"]),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
"""The launchers' variables, the first pair that is set wins: torchrun inside srun sets both."""
_DATA_DIMENSIONS = ("dp", "data", "data_parallel")
_REPLICATE_AND_SHARD = ("dp_replicate", "dp_shard")
"""Two dimensions of a hybrid-sharded mesh that are data-parallel together, the first is slower."""
_PAIR_FIX = "Give both rank= and world_size=, or neither."
_SHARERS = {
    ("accelerate.data_loader", "DataLoaderDispatcher"): (
        "accelerate would deal out what rank 0 reads: the samples of the other ranks would never "
        "be trained on"
    ),
    ("accelerate.data_loader", "IterableDatasetShard"): (
        "accelerate would share out this rank's samples once more: most of them would be dropped"
    ),
    ("transformers.trainer_pt_utils", "IterableDatasetShard"): (
        "Trainer would share out this rank's samples once more: most of them would be dropped"
    ),
    ("torch.utils.data.distributed", "DistributedSampler"): (
        "a DistributedSampler (deepspeed.initialize(training_data=...) makes one) cannot be put "
        "over samples that are shared out already"
    ),
}
"""(module, class) of those who share samples out → what would happen if they did so again."""
_NEEDS_RANKS = "accelerate.data_loader", "transformers.trainer_pt_utils"
"""Modules whose classes do no harm where there is one rank."""
_SHARED_FIX = (
    "Iterate over a ShardLoader as it is, without accelerator.prepare() or training_data=; in a "
    "Trainer put ShardTrainerMixin before it (docs/how-to/trainer.md)."
)


@dataclass(frozen=True, slots=True)
class World:
    """A place among the data-parallel ranks."""

    rank: int
    size: int
    is_found: bool = True
    """False: nothing said anything, so this is rank 0 of 1."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise UsageError(
                "the rank does not fit the world size",
                expected=f"a rank from 0 to {self.size - 1}",
                found=f"rank {self.rank} of {self.size}",
                fix="Give the data-parallel rank and size: rank=, world_size=.",
            )


def find_world(
    rank: int | None = None,
    world_size: int | None = None,
    *,
    group: object | None = None,
    environment: Mapping[str, str] | None = None,
) -> World:
    """The data-parallel rank and size of this process.

    From the arguments; else from `group`, a torch process group, a DeviceMesh (of one dimension,
    or with one named dp, data or data_parallel, or dp_replicate and dp_shard) or an mpu as
    DeepSpeed and Megatron use it; else from torch.distributed's default group when it is
    initialised; else from the environment of torchrun (RANK), a Slurm step (srun) or Open MPI; else
    rank 0 of 1. Raises UsageError.
    """
    if rank is not None or world_size is not None:
        if rank is None or world_size is None:
            raise UsageError("rank and world_size belong together", fix=_PAIR_FIX)
        return World(rank, world_size)
    if group is not None:
        return _world_of_group(group)
    return (
        _world_of_torch()
        or _world_of_environment(os.environ if environment is None else environment)
        or World(0, 1, is_found=False)
    )


def _world_of_torch() -> World | None:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return None
    return World(dist.get_rank(), dist.get_world_size())


def _world_of_environment(environment: Mapping[str, str]) -> World | None:
    for rank_name, size_name in _ENVIRONMENTS:
        if rank_name in environment and size_name in environment:
            return World(
                _integer(environment, rank_name),
                _integer(environment, size_name),
            )
    return None


def _integer(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as err:
        raise UsageError(
            "not a number",
            where=f"environment variable {name}",
            found=repr(environment[name]),
            fix="Unset it, or give rank= and world_size=.",
        ) from err


def _world_of_group(group: Any) -> World:
    if hasattr(group, "get_data_parallel_rank"):
        return World(int(group.get_data_parallel_rank()), int(group.get_data_parallel_world_size()))
    if hasattr(group, "mesh_dim_names"):
        return _world_of_mesh(group)
    if callable(getattr(group, "rank", None)) and callable(getattr(group, "size", None)):
        return World(int(group.rank()), int(group.size()))
    raise UsageError(
        "cannot tell the data-parallel rank from this group",
        expected="a process group, a DeviceMesh, or an mpu with get_data_parallel_rank()",
        found=type(group).__name__,
        fix="Give rank= and world_size= instead.",
    )


def _world_of_mesh(mesh: Any) -> World:
    names = tuple(mesh.mesh_dim_names or ())
    found = [name for name in _DATA_DIMENSIONS if name in names]
    if mesh.ndim > 1 and not found and set(_REPLICATE_AND_SHARD) & set(names):
        found = [name for name in _REPLICATE_AND_SHARD if name in names]
    elif mesh.ndim > 1 and len(found) != 1:
        raise UsageError(
            "a mesh of several dimensions, none of them surely the data-parallel one",
            expected=f"a dimension named {' or '.join(_DATA_DIMENSIONS)}",
            found=f"dimensions {names}",
            fix='Pass the data-parallel part of the mesh: group=mesh["..."].',
        )
    rank, size = 0, 1
    for part in [mesh[name] for name in found] if mesh.ndim > 1 else [mesh]:
        rank = rank * int(part.size()) + int(part.get_local_rank())
        size *= int(part.size())
    return World(rank, size)


def refuse_second_sharing(world_size: int) -> None:
    """Raise UsageError when one of those who share out samples is calling, however indirectly.

    None of them asks the dataset, and none warns: what gives them away is the call stack, also in
    a forked worker, which keeps its parent's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        problem = _SHARERS.get((module, frame.f_code.co_qualname.partition(".")[0]))
        if problem is not None and (world_size > 1 or module not in _NEEDS_RANKS):
            raise UsageError(problem, found=f"{world_size} ranks", fix=_SHARED_FIX)
        frame = frame.f_back
