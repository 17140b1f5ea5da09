"""Worker processes: the same batches in the same order, and errors with their fields."""

from __future__ import annotations

import multiprocessing
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import make_dataset

from shardkit.errors import CorruptShard, ShardkitError
from shardkit.loader import ShardLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 samples, some with images."""
    path = tmp_path_factory.mktemp("workers")
    make_dataset(path, [30, 16], n_images={3: 2, 20: 1, 41: 1})
    return path


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two batches hold the same."""
    return one.keys() == other.keys() and all(
        value.equal(other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_order_does_not_depend_on_workers(
    dataset: Path, n_workers: int, drop_last: bool
) -> None:
    """Every batch is equal, for every number of workers."""
    options: dict[str, Any] = {"rank": 1, "world_size": 2, "drop_last": drop_last}
    options["sample_keys"] = True
    alone = list(ShardLoader(dataset, 4, **options))
    found = list(ShardLoader(dataset, 4, num_workers=n_workers, **options))

    assert len(found) == len(alone)
    assert all(map(equal, found, alone))


def test_packed_rows_through_workers(tmp_path: Path) -> None:
    """Packs keep their positions and borders."""
    make_dataset(tmp_path, [13], packed=True)
    alone = list(ShardLoader(tmp_path, 3, rank=0, world_size=1))
    found = list(ShardLoader(tmp_path, 3, rank=0, world_size=1, num_workers=2))
    assert all(map(equal, found, alone))


def test_resume_with_other_workers(dataset: Path) -> None:
    """Cut with two workers, go on with three, then none."""
    expected = list(ShardLoader(dataset, 4, rank=0, world_size=1))
    first = ShardLoader(dataset, 4, rank=0, world_size=1, num_workers=2)
    found = list(islice(first, 3))
    assert first.state_dict()["position"] == 12
    second = ShardLoader(dataset, 4, rank=0, world_size=1, num_workers=3)
    second.load_state_dict(first.state_dict())
    found += islice(second, 5)
    third = ShardLoader(dataset, 4, rank=0, world_size=1)
    third.load_state_dict(second.state_dict())
    found += third

    assert len(found) == len(expected)
    assert all(map(equal, found, expected))


def test_an_error_arrives_whole(tmp_path: Path) -> None:
    """A damaged sample is a CorruptShard with where, expected, found and fix, after the batches
    before it."""
    make_dataset(tmp_path, [12])
    path = tmp_path / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    table_offset = len(data) // 3
    data[table_offset] ^= 1
    path.write_bytes(data)
    loader = ShardLoader(tmp_path, 1, shuffle=False, rank=0, world_size=1, num_workers=2)
    batches, seen = iter(loader), []

    def run() -> None:
        for batch in batches:
            seen.append(batch)

    with pytest.raises(CorruptShard) as caught:
        run()
    assert 0 < len(seen) < 12
    assert f"sample {len(seen):08d}" in (caught.value.where or "")
    assert caught.value.expected
    assert caught.value.found
    assert caught.value.fix


class Odd(ValueError):
    """It can be pickled, and cannot be made again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def raise_what_cannot_be_pickled(picture: object) -> None:
    error = ValueError("it holds a lock")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def raise_what_cannot_be_made_again(picture: object) -> None:
    raise Odd(1, 2)


def stop(picture: object) -> None:
    raise StopIteration


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (raise_what_cannot_be_pickled, "it holds a lock"),
        (raise_what_cannot_be_made_again, "1 and 2"),
        (stop, "ended before the epoch did|raised StopIteration"),
    ],
)
def test_no_error_is_the_end_of_an_epoch(
    dataset: Path, transform: Any, message: str, n_workers: int
) -> None:
    """Whatever is raised where batches are made, the epoch never looks complete."""
    loader = ShardLoader(
        dataset, 2, shuffle=False, rank=0, world_size=1, num_workers=n_workers,
        image_transform=transform,
    )  # fmt: skip
    batches, seen = iter(loader), list[object]()
    with pytest.raises(Exception, match=message) as caught:
        seen.extend(batch["input_ids"] for batch in batches)
    assert len(seen) < len(loader)
    assert loader.state_dict()["epoch"] == 0
    if n_workers and "lock" in message:
        assert "raise_what_cannot_be_pickled" in caught.value.__notes__[0]
    with pytest.raises(ShardkitError, match="ended before the epoch did"):
        next(batches)


@pytest.mark.slow
def test_spawned_workers(dataset: Path) -> None:
    """Everything that a worker needs can be pickled."""
    alone = list(ShardLoader(dataset, 8, rank=0, world_size=1))
    found = list(
        ShardLoader(dataset, 8, rank=0, world_size=1, num_workers=1, worker_context="spawn")
    )
    assert all(map(equal, found, alone))


def test_left_midway(dataset: Path) -> None:
    """An iteration that is left ends its workers."""
    others = {*multiprocessing.active_children()}  # an error that pytest keeps holds its workers
    batches = iter(ShardLoader(dataset, 2, rank=0, world_size=1, num_workers=2))
    next(batches)
    workers = {*multiprocessing.active_children()} - others
    assert len(workers) == 2
    del batches
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
