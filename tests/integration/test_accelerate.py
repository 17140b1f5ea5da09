"""The two set-ups of accelerate that lose samples without a word are refused; ours passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from launch import reports
from ranks import run_ranks
from synthetic import make_dataset

from shardkit import ShardLoader, ShardTable
from shardkit.integrations.accelerate import AccelerateLoader

SCRIPT = Path(__file__).with_name("run_accelerate.py")


@pytest.mark.slow
def test_losing_set_ups_are_refused(tmp_path: Path) -> None:
    """On two real ranks, with no worker and with a forked and a spawned one."""
    make_dataset(tmp_path / "data", (13, 8))
    run_ranks(2, SCRIPT, tmp_path / "data", tmp_path)
    ranks = reports(tmp_path, 2)
    for rank in ranks:
        refused = [value for name, value in rank.items() if name.startswith("shard")]
        assert len(refused) == 3
        assert all("share out this rank's samples once more" in text for text in refused)
    for name in ("dispatch", "dispatch, forked worker", "dispatch, spawned worker"):
        assert "would never be trained on" in ranks[0][name]
    seen = [key for rank in ranks for key in rank["ShardLoader prepared"]]
    assert len(seen) == len(set(seen)) == 20
    table = ShardTable(tmp_path / "data")
    sums = sorted(int(table[i]["input_ids"].sum()) for i in range(21))
    assert [sorted(rank["gathered"]) for rank in ranks] == [sums] * 2  # the last step has one row


def test_a_group_ends_with_the_epoch(tmp_path: Path) -> None:
    """Five batches, three of them a step: accelerate steps after 3 and 5, also after a resume."""
    make_dataset(tmp_path, [21])
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    model = torch.nn.Linear(1, 1)
    loader = ShardLoader(tmp_path, 4, rank=0, world_size=1, seed=1)
    batches = AccelerateLoader(loader)
    accelerator.register_for_checkpointing(batches)

    def steps() -> list[tuple[bool, bool]]:
        found = []
        for _ in batches:
            with accelerator.accumulate(model):
                found.append((accelerator.sync_gradients, loader.ends_step(accumulation=3)))
        return found

    one = [(False, False), (False, False), (True, True), (False, False), (True, True)]
    assert steps() == steps() == one
    for n, _ in enumerate(batches, 1):
        if n == 3:
            break
    accelerator.save_state(str(tmp_path / "checkpoint"))
    again = ShardLoader(tmp_path, 4, rank=0, world_size=1, seed=1)
    other = AccelerateLoader(again)
    accelerator._custom_objects = [other]
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert (again.epoch, len(list(other)), again.epoch) == (2, 2, 3)
    rows = [
        len(accelerator.gather_for_metrics(b["labels"])) for b in AccelerateLoader(again.for_eval())
    ]
    assert rows == [4, 4, 4, 4, 4, 1]
