"""Two ranks of one sequence-parallel group under DeepSpeed's adapter; the rows go into JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPDataLoaderAdapter

from shardkit import ShardLoader
from shardkit.integrations.deepspeed import SequenceRows


def main() -> None:
    dataset, folder = sys.argv[1], Path(sys.argv[2])
    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    loader = ShardLoader(dataset, 1, seed=1, pad_to_multiple_of=128)
    rows = UlyssesSPDataLoaderAdapter(
        SequenceRows(loader), rank, torch.distributed.group.WORLD, 2, torch.device("cpu")
    )
    epochs = []
    for _ in range(2):
        epochs.append([{name: value.tolist() for name, value in row.items()} for row in rows])
    report = {"epochs": epochs, "len": len(rows), "state": loader.state_dict()}
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
