"""The same training script under torchrun, the deepspeed launcher and Slurm's variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import deepspeed, reports, run, run_as_slurm, torchrun
from records import TOKENIZER

from shardkit import ShardLoader, pack

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPT = EXAMPLES / "train_deepspeed.py"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("launch") / "text"
    pack(
        EXAMPLES / "data/alpaca.json",
        out,
        tokenizer=TOKENIZER,
        template="qwen_chat",
        max_length=256,
        shard_size=40_000,
    )
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "stage"), [("torchrun", 2), ("deepspeed", 1), ("slurm", 1)])
def test_two_ranks_see_each_sample_once(
    dataset: Path, tmp_path: Path, launcher: str, stage: int
) -> None:
    """Both ranks make equally many steps, share no sample, and together see all but the rest.

    What they see is what loaders made here see, with no process group at all: the data needs no
    collective.
    """
    arguments = (dataset, "--stage", stage, "--batch-size", 8, "--report", tmp_path)
    if launcher == "slurm":
        run_as_slurm(2, SCRIPT, *arguments)
    elif launcher == "deepspeed":
        run(deepspeed(2, SCRIPT, *arguments))
    else:
        run(torchrun(2, SCRIPT, *arguments))
    ranks = reports(tmp_path, 2)
    assert [len(rank["keys"]) for rank in ranks] == [300 // 16] * 2
    seen = [key for rank in ranks for batch in rank["keys"] for key in batch]
    assert len(seen) == len(set(seen)) == 300 - 300 % 16
    for number, rank in enumerate(ranks):
        alone = ShardLoader(dataset, 8, seed=1, rank=number, world_size=2, sample_keys=True)
        assert [batch["keys"] for batch in alone] == rank["keys"]
        assert rank["losses"][-1] < rank["losses"][0]


@pytest.mark.slow
def test_a_rank_reads_while_the_other_sleeps(dataset: Path, tmp_path: Path) -> None:
    """With a process group, an epoch from construction to state_dict waits for no other rank."""
    run(torchrun(2, Path(__file__).with_name("run_alone.py"), dataset, tmp_path))
    one, two = reports(tmp_path, 2)
    assert len(one["keys"]) == len(two["keys"]) == 300 // 8
    seen = [key for rank in (one, two) for batch in rank["keys"] for key in batch]
    assert len(seen) == len(set(seen)) == 300 - 300 % 8
    assert one["state"] == two["state"]
