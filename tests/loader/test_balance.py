"""balance="cost": exactly once, resume as exact as ever, refused where it makes no sense."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_dataset, number_of

from shardkit import ShardMixture
from shardkit.dataset import open_dataset
from shardkit.errors import MissingShard, UsageError
from shardkit.loader import ShardLoader
from shardkit.report.topology import Run, topology_of_state

TOTAL = 331
SCOPES = ("auto", "lanes", "group", "step")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("balance")
    make_dataset(path, [100, 31, 200])
    return path


def loader(path: Any, rank: int, world_size: int, batch_size: int, **options: Any) -> ShardLoader:
    given: dict[str, Any] = {"balance": "cost", "prefetch": 0, "seed": 4} | options
    return ShardLoader(path, batch_size, rank=rank, world_size=world_size, **given)


def steps(path: Path, world_size: int, batch_size: int, **options: Any) -> list[list[int]]:
    """The samples of each global batch, in rank order, of one epoch."""
    ranks = [loader(path, rank, world_size, batch_size, **options) for rank in range(world_size)]
    return [
        [number_of(row) for batch in batches for row in batch["input_ids"].tolist()]
        for batches in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("scope", SCOPES)
def test_every_sample_once(dataset: Path, scope: str) -> None:
    """All but the last, partial global batch, each once; another order than without balance."""
    found = steps(dataset, 3, 4, balance_scope=scope)
    seen = Counter(number for step in found for number in step)
    assert set(seen.values()) == {1}
    assert len(seen) == TOTAL // 12 * 12
    assert found != steps(dataset, 3, 4, balance=None)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("at", [1, 7, 20])
def test_resume_on_other_ranks(dataset: Path, scope: str, at: int) -> None:
    """At equal global batch the rest of the epoch is the uncut run's, on any number of ranks."""
    whole = steps(dataset, 2, 6, balance_scope=scope)
    first = loader(dataset, 0, 2, 6, balance_scope=scope)
    for _, batch in zip(range(at), first, strict=False):
        assert batch["input_ids"].shape[0] == 6
    state = first.state_dict()
    ranks = [loader(dataset, rank, 4, 3, balance_scope=scope) for rank in range(4)]
    for one in ranks:
        one.load_state_dict(state)
    rest = [
        [number_of(row) for batch in batches for row in batch["input_ids"].tolist()]
        for batches in zip(*ranks, strict=True)
    ]
    assert rest == whole[at:]


def test_the_trace_of_a_balanced_run(dataset: Path) -> None:
    """From the state alone: which samples a step held."""
    one = loader(dataset, 1, 2, 4)
    batches = iter(one)
    next(batches)
    state = one.state_dict()
    topology = topology_of_state(open_dataset(dataset), state, world_size=2, batch_size=4)
    run = Run(topology, open_dataset(dataset))
    shards, rows = run.order.locate(run.positions(0, 1))
    first = [0, 100, 131]
    numbers = [first[s] + r for s, r in zip(shards.tolist(), rows.tolist(), strict=True)]
    assert numbers == [number_of(row) for row in next(batches)["input_ids"].tolist()]


def test_mixtures_too(dataset: Path, tmp_path: Path) -> None:
    """The samples of each block of a mixture stay in their group."""
    make_dataset(tmp_path / "b", [50])
    mixture = {dataset: 2.0, tmp_path / "b": 1.0}
    plain = ShardLoader(ShardMixture(mixture, seed=4, rank=0, world_size=1), 6, prefetch=0)
    level = ShardLoader(
        ShardMixture(mixture, seed=4, rank=0, world_size=1), 6, prefetch=0, balance="cost"
    )

    def samples(one: ShardLoader) -> Counter[tuple[int, ...]]:
        return Counter(tuple(row) for batch in one for row in batch["input_ids"][:, :2].tolist())

    assert samples(level) == samples(plain)


def test_what_makes_no_sense_is_refused(dataset: Path) -> None:
    """Both orders at once, options of a balance that is not asked for, wrong values."""
    with pytest.raises(UsageError, match="two orders"):
        loader(dataset, 0, 1, 4, group_by_length=True)
    for option in ({"balance_scope": "lanes"}, {"cost_model": (1, 1, 1)}):
        with pytest.raises(UsageError, match="without balance"):
            loader(dataset, 0, 1, 4, balance=None, **option)
    for wrong in ({"balance": "length"}, {"balance_scope": "all"}, {"cost_model": "big"}):
        with pytest.raises(UsageError):
            loader(dataset, 0, 1, 4, **wrong)


def test_a_shard_that_is_missing_is_told_before_the_first_batch(tmp_path: Path) -> None:
    """Where a step deals out samples of all lanes, a rank needs more than its own lane."""
    make_dataset(tmp_path, [40] * 4)
    options: dict[str, Any] = {"balance_scope": "step", "shuffle": "window", "window": 1}
    one = loader(tmp_path, 0, 2, 4, **options)
    order = one.arrangement.epoch(0, one.dataset.members[0].sizes)
    (tmp_path / f"shard-{order.shards_of_lane(1)[-1]:05d}.tar").unlink()
    with pytest.raises(MissingShard):
        next(iter(one))
