"""P6: the epoch is one sequence, a pure function of dataset, seed, epoch, lanes and chunk."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import make_dataset, number_of

from shardkit import ShardLoader

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs/vectors/order.json").read_text())
SIZES = [13, 4, 0, 21, 8, 17]


def served(path: Path, batch_size: int, *, epoch: int = 0, **options: Any) -> list[int]:
    """The samples of an epoch in the order in which a loader serves them."""
    options = {"rank": 0, "world_size": 1, "seed": 5, "drop_last": False} | options
    loader = ShardLoader(path, batch_size, **options)
    loader.set_epoch(epoch)
    return [
        number_of(row)
        for batch in loader
        for row in batch["input_ids"].tolist()[: batch_size - batch.get("n_padding_rows", 0)]
    ]


def numbered(case: dict[str, Any]) -> list[int]:
    """The (shard, row) pairs of a vector as numbers of the samples that `make_dataset` writes."""
    first = np.concatenate([[0], np.cumsum(case["sizes"])])
    return [int(first[shard]) + row for shard, row in case["out"]]


@pytest.mark.parametrize("case", VECTORS["sequence"])
def test_a_loader_serves_the_vectors(tmp_path: Path, case: dict[str, Any]) -> None:
    """What a training loop sees is what docs/vectors says, sample by sample."""
    make_dataset(tmp_path, case["sizes"])
    found = served(
        tmp_path,
        case["chunk"],
        seed=case["seed"],
        epoch=case["epoch"],
        lanes=case["lanes"],
        shuffle=case["shuffle"],
        window=case["window"],
    )
    assert found == numbered(case)


def test_one_sequence_in_literal_numbers(tmp_path: Path) -> None:
    """A short epoch written out here: neither code nor vectors can change it unnoticed."""
    make_dataset(tmp_path, [3, 4, 5])
    found = served(tmp_path, 2, seed=7, epoch=1, lanes=2)
    assert found == [9, 11, 2, 5, 10, 0, 4, 6, 8, 7, 3, 1]


@pytest.mark.parametrize("shuffle", ["full", "window", "none"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_slice_the_one_sequence(tmp_path: Path, world_size: int, shuffle: str) -> None:
    """At one global batch of 8 any number of ranks serves the same global batches."""
    make_dataset(tmp_path, SIZES)
    order: dict[str, Any] = {"shuffle": shuffle, "window": 6, "lanes": 3, "seed": 9}
    whole = ShardLoader(tmp_path, 8, rank=0, world_size=1, **order)
    state = whole.state_dict()
    expected = [[number_of(row) for row in b["input_ids"].tolist()] for b in whole]
    ranks = []
    for rank in range(world_size):
        loader = ShardLoader(tmp_path, 8 // world_size, rank=rank, world_size=world_size, **order)
        loader.load_state_dict(state)
        ranks.append([[number_of(row) for row in b["input_ids"].tolist()] for b in loader])
    found = [[k for part in step for k in part] for step in zip(*ranks, strict=True)]
    assert found == expected
    assert len(expected) == sum(SIZES) // 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_generator_of_random_numbers_takes_part(tmp_path: Path, num_workers: int) -> None:
    """Whatever Python, NumPy and torch are seeded with, the order is one, and theirs goes on."""
    make_dataset(tmp_path, SIZES)
    orders = []
    for seed in (0, 1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = (random.random(), np.random.rand(), torch.rand(()).item())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        orders.append(served(tmp_path, 4, num_workers=num_workers))
        assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(sum(SIZES)))


_OTHER_PROCESS = """
import json, random, sys
import numpy, torch
random.seed(int(sys.argv[3])); numpy.random.seed(int(sys.argv[3])); torch.manual_seed(77)
sys.path.insert(0, sys.argv[2])
from synthetic import number_of
from shardkit import ShardLoader
loader = ShardLoader(sys.argv[1], 4, rank=0, world_size=1, seed=5, drop_last=False)
rows = [(b["input_ids"].tolist(), b.get("n_padding_rows", 0)) for b in loader]
print(json.dumps([number_of(r) for batch, n in rows for r in batch[: 4 - n]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "4242"])
def test_another_process_serves_the_same(tmp_path: Path, seed: str) -> None:
    """A fresh interpreter with another hash seed, other generators, another copy, other times."""
    make_dataset(tmp_path / "here", SIZES)
    make_dataset(tmp_path / "there", SIZES)
    for path in (tmp_path / "there").iterdir():
        os.utime(path, (int(seed), int(seed)))
    helpers = Path(__file__).resolve().parents[1] / "helpers"
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path / "there"), str(helpers), seed],
        env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == served(tmp_path / "here", 4)


def test_what_the_order_is_a_function_of(tmp_path: Path) -> None:
    """Seed, epoch and lanes each change it; the number of workers does not."""
    make_dataset(tmp_path, SIZES)
    base = served(tmp_path, 4)
    assert served(tmp_path, 4, num_workers=2) == base
    assert served(tmp_path, 4, prefetch=0) == base
    changed = [
        served(tmp_path, 4, seed=6),
        served(tmp_path, 4, epoch=1),
        served(tmp_path, 4, lanes=3),
    ]
    assert all(one != base and sorted(one) == sorted(base) for one in changed)
