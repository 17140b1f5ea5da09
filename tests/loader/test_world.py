"""Rank and world size, from every place that may say them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardkit.errors import UsageError
from shardkit.integrations.deepspeed import first_node, slurm_to_env
from shardkit.loader.world import World, find_world

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "6"}


class Mpu:
    """The part of DeepSpeed's and Megatron's model parallel unit that matters."""

    def get_data_parallel_rank(self) -> int:
        return 2

    def get_data_parallel_world_size(self) -> int:
        return 8


def test_arguments_win() -> None:
    """What the caller says is taken, whatever the environment says."""
    assert find_world(1, 2, environment=TORCHRUN) == World(1, 2)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, World(3, 4)),
        (SLURM, World(1, 2)),
        (MPI, World(5, 6)),
        (SLURM | TORCHRUN | MPI, World(3, 4)),
        (SLURM | MPI, World(1, 2)),
        (BATCH_SCRIPT, World(0, 1, is_found=False)),
        (BATCH_SCRIPT | MPI, World(5, 6)),
        ({"RANK": "1"}, World(0, 1, is_found=False)),
        ({"SLURM_NTASKS": "2"}, World(0, 1, is_found=False)),
        ({}, World(0, 1, is_found=False)),
    ],
)
def test_the_environment_of_each_launcher(environment: dict[str, str], expected: World) -> None:
    """RANK wins over a Slurm step, which wins over Open MPI; half a pair says nothing.

    A batch script without srun has Slurm's variables, and is one process all the same.
    """
    assert find_world(environment=environment) == expected


def test_an_mpu_gives_the_data_parallel_place() -> None:
    """Members of a tensor-parallel group get the same place, so the same batches."""
    assert find_world(group=Mpu(), environment=TORCHRUN) == World(2, 8)


def test_an_initialised_group_and_a_mesh(tmp_path: Path) -> None:
    """The default process group wins over the environment; a group and a mesh are taken."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/join", rank=0, world_size=1)
    try:
        assert find_world(environment=TORCHRUN) == World(0, 1)
        assert find_world(group=dist.group.WORLD, environment=TORCHRUN) == World(0, 1)
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
        assert find_world(group=mesh, environment=TORCHRUN) == World(0, 1)
        assert find_world(group=mesh["tp"], environment=TORCHRUN) == World(0, 1)
        odd = init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
        with pytest.raises(UsageError, match="several dimensions"):
            find_world(group=odd)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("rank", "size", "words"),
    [(2, 2, "does not fit"), (-1, 2, "does not fit"), (0, 0, "does not fit"), (1, None, "both")],
)
def test_impossible_places_are_refused(rank: int, size: int | None, words: str) -> None:
    """A rank outside the world, or half a pair, is an error that names the values."""
    with pytest.raises(UsageError, match=words):
        find_world(rank, size)


def test_a_variable_that_is_no_number_is_named() -> None:
    """The error names the variable."""
    with pytest.raises(UsageError, match="WORLD_SIZE"):
        find_world(environment={"RANK": "0", "WORLD_SIZE": "two"})


def test_another_object_is_refused() -> None:
    """Something that is no group is refused by its type's name."""
    with pytest.raises(UsageError, match="int"):
        find_world(group=3)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("node7", "node7"),
        ("a1,a2", "a1"),
        ("gpu[003-008,11],login", "gpu003"),
        ("rack[2,5]n[07-09]", "rack2n07"),
        ("a-b[1-2]-ib,c", "a-b1-ib"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, expected: str) -> None:
    """As `scontrol show hostnames` gives it, without scontrol."""
    assert first_node(nodes) == expected


def test_slurm_to_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's variables under torchrun's names; nothing in a batch script."""
    monkeypatch.setattr("os.environ", dict(BATCH_SCRIPT))
    slurm_to_env()
    assert "RANK" not in os.environ
    nodes = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_STEP_NODELIST": "n[2-3]"}
    monkeypatch.setattr("os.environ", SLURM | nodes | {"PATH": "", "MASTER_PORT": "7"})
    slurm_to_env()
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["1", "2", "n2", "7"]
