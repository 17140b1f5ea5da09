"""In a group of two, one rank reads its whole epoch while the other does nothing; then the other.

A collective of any kind would wait for the rank that sleeps, and run into the timeout.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from shardkit import ShardLoader


def main() -> None:
    dataset, out = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    rank = dist.get_rank()
    if rank == 1:
        wait_for(out / "rank0.json")
    loader = ShardLoader(dataset, 4, seed=1, num_workers=rank, sample_keys=True)
    loader.set_epoch(2)
    keys = [batch["keys"] for batch in loader]
    state = loader.state_dict()
    (out / "x").write_text(json.dumps({"keys": keys, "state": state}))
    (out / "x").rename(out / f"rank{rank}.json")
    if rank == 0:
        wait_for(out / "rank1.json")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.05)


if __name__ == "__main__":
    main()
