"""ShardLoader: what it yields, in which order, and where it stands."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import ids_of, make_dataset, number_of

from shardkit.errors import StateMismatch, UsageError
from shardkit.loader import ShardDataset, ShardLoader
from shardkit.order.epoch import EpochOrder, batch_positions

SIZES = [37, 0, 21, 60, 5]
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """123 samples in five uneven shards."""
    path = tmp_path_factory.mktemp("plain")
    make_dataset(path, SIZES)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 packs in two shards."""
    path = tmp_path_factory.mktemp("packed")
    make_dataset(path, [25, 15], packed=True)
    return path


def loader_of(path: Path, batch_size: int, **options: Any) -> ShardLoader:
    """A loader of one rank that reads without a thread, unless told otherwise."""
    return ShardLoader(path, batch_size, **({"rank": 0, "world_size": 1, "prefetch": 0} | options))


def numbers(batch: dict[str, Any]) -> list[int]:
    """The samples of a batch, padding rows left out."""
    rows = batch["input_ids"].tolist()
    return [number_of(row) for row in rows if len(row) > 1 and row[0] >= 1000]


def numbers_of(batches: Sequence[dict[str, Any]]) -> list[int]:
    """The samples of some batches, in order."""
    return [number for batch in batches for number in numbers(batch)]


def test_rows_are_the_samples(dataset: Path) -> None:
    """Each row is one sample's ids and labels, padded to the longest of the batch."""
    for batch in loader_of(dataset, 8):
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        assert batch["input_ids"].shape == (8, max(lengths))
        for ids, labels, length in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
            expected = ids_of(number_of(ids.tolist()))
            assert ids[:length].tolist() == expected.tolist()
            assert labels[:length].tolist() == [-100, -100, *expected[2:].tolist()]
            assert ids[length:].eq(0).all()
            assert labels[length:].eq(-100).all()


def test_the_order_is_that_of_the_specification(dataset: Path) -> None:
    """Rank r's batch at step g holds the positions that docs/format.md section 8 says."""
    order = EpochOrder(np.array(SIZES), seed=3, epoch=2, lanes=2, chunk=4)
    firsts = np.concatenate([[0], np.cumsum(SIZES)])
    for rank in (0, 1):
        loader = loader_of(dataset, 4, rank=rank, world_size=2, seed=3, epoch=2)
        positions = batch_positions(0, len(loader), batch_size=4, rank=rank, world_size=2)
        shards, rows = order.locate(positions.ravel())
        assert numbers_of(list(loader)) == (firsts[shards] + rows).tolist()


def test_file_order(dataset: Path) -> None:
    """shuffle=False is the order of the files."""
    assert numbers_of(list(loader_of(dataset, 3, shuffle=False))) == list(range(TOTAL))


def test_epochs_follow_each_other(dataset: Path) -> None:
    """Iterating again gives the next epoch; set_epoch goes to one; equal epochs are equal."""
    loader = loader_of(dataset, 4)
    epochs = [numbers_of(list(loader)) for _ in range(3)]

    assert loader.epoch == 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    loader.set_epoch(1)
    assert numbers_of(list(loader)) == epochs[1]
    assert numbers_of(list(loader_of(dataset, 4, epoch=2))) == epochs[2]


def test_an_iteration_that_is_left_begins_anew(dataset: Path) -> None:
    """After `break` the same epoch begins again, as with a DataLoader, and that is told."""
    loader = loader_of(dataset, 4, prefetch=4)
    first = [numbers(batch) for batch, _ in zip(loader, range(3), strict=False)]

    with pytest.warns(UserWarning, match="batches come again"):
        again = [numbers(batch) for batch in loader]
    assert again[:3] == first


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_only_batches_handed_out_count(dataset: Path, prefetch: int) -> None:
    """What the thread has made ahead is not in the state."""
    loader = loader_of(dataset, 4, prefetch=prefetch, rank=1, world_size=2)
    batches = iter(loader)
    for step in range(5):
        assert loader.state_dict()["position"] == step * 8
        next(batches)


def test_the_end_of_an_epoch_is_the_start_of_the_next(dataset: Path) -> None:
    """When the last batch is handed out the state says (epoch + 1, 0)."""
    loader = loader_of(dataset, 4, world_size=2)
    batches = iter(loader)
    for _ in range(len(loader) - 1):
        next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (0, (len(loader) - 1) * 8)
    next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert next(batches, None) is None


def test_the_state_is_plain_and_the_same_on_every_rank(dataset: Path) -> None:
    """Integers and strings, through JSON and pickle and torch.save; nothing per rank."""
    states = []
    for rank in range(3):
        loader = loader_of(dataset, 5, rank=rank, world_size=3)
        next(iter(loader))
        states.append(loader.state_dict())

    assert states[0] == states[1] == states[2]
    assert all(isinstance(value, int | str) for value in states[0].values())
    assert json.loads(json.dumps(states[0])) == states[0]
    assert pickle.loads(pickle.dumps(states[0])) == states[0]


def test_a_loaded_state_continues(dataset: Path) -> None:
    """The rest of the epoch follows, then whole epochs; set_epoch of that epoch changes nothing."""
    whole = loader_of(dataset, 4)
    expected = numbers_of(list(whole)) + numbers_of(list(whole))
    first = loader_of(dataset, 4)
    batches = iter(first)
    seen = [number for _ in range(7) for number in numbers(next(batches))]

    second = loader_of(dataset, 4)
    second.load_state_dict(first.state_dict())

    assert second.state_dict() == first.state_dict()
    assert (second.epoch, second.n_remaining) == (0, len(second) - 7)
    next(iter(second))  # a look at a batch does not lose it
    second.set_epoch(0)
    seen += numbers_of(list(second))
    seen += numbers_of(list(second))
    assert seen == expected


def test_going_back_before_a_loaded_state_is_told(dataset: Path) -> None:
    """set_epoch to an earlier epoch than the state's warns that samples repeat."""
    loader = loader_of(dataset, 4)
    loader.load_state_dict(loader.state_dict() | {"epoch": 3})
    with pytest.warns(UserWarning, match="seen again"):
        loader.set_epoch(2)


def test_another_seed_in_the_state_is_used_and_told(dataset: Path) -> None:
    """The state's seed wins, with a warning that names both."""
    old = loader_of(dataset, 4, seed=5)
    expected = numbers_of(list(old))
    state = loader_of(dataset, 4, seed=5).state_dict()
    loader = loader_of(dataset, 4, seed=6)
    with pytest.warns(UserWarning, match="seed 5, this loader 6"):
        loader.load_state_dict(state)
    assert numbers_of(list(loader)) == expected


def test_the_state_of_another_dataset_is_refused(dataset: Path, tmp_path: Path) -> None:
    """By name of what differs; so is a dict that is no state, and one of another version."""
    make_dataset(tmp_path, SIZES, name="other.json")
    loader = loader_of(dataset, 4)
    with pytest.raises(StateMismatch, match="fingerprint differs"):
        loader.load_state_dict(loader_of(tmp_path, 4).state_dict())
    with pytest.raises(StateMismatch, match="content differs"):
        loader.load_state_dict(loader.state_dict() | {"content": "0" * 64})
    with pytest.raises(StateMismatch, match="not the state"):
        loader.load_state_dict({"step": 3})
    for name, least in (("position", 0), ("epoch", 0), ("chunk", 1), ("global_batch", 1)):
        with pytest.raises(StateMismatch, match=f">= {least}.*{name}"):
            loader.load_state_dict(loader.state_dict() | {name: least - 1})
    with pytest.raises(StateMismatch, match="version 99"):
        loader.load_state_dict(loader.state_dict() | {"version": 99})


def test_padding_fills_the_last_global_batch(dataset: Path) -> None:
    """drop_last=False: every sample once, and rows without labels on top, counted."""
    seen, n_padding, shapes = [], 0, set()
    for rank in range(4):
        loader = loader_of(dataset, 10, rank=rank, world_size=4, drop_last=False)
        batches = list(loader)
        shapes.add((len(batches), len(loader)))
        for batch in batches:
            seen += numbers(batch)
            n_padding += batch["n_padding_rows"]
            assert len(batch["input_ids"]) == 10
            if batch["n_padding_rows"]:
                assert batch["labels"][-batch["n_padding_rows"] :].eq(-100).all()
            assert batch["attention_mask"][:, 0].eq(1).all()

    assert shapes == {(4, 4)}
    assert sorted(seen) == list(range(TOTAL))
    assert n_padding == 160 - TOTAL


def test_fewer_samples_than_a_global_batch(dataset: Path) -> None:
    """No step on any rank, and a warning that says why."""
    loader = loader_of(dataset, 100, world_size=2)
    assert len(loader) == 0
    with pytest.warns(UserWarning, match="do not fill a global batch of 200"):
        assert list(loader) == []
    assert loader.epoch == 1  # so that `while loader.epoch < n` ends


def test_packed_batches(packed: Path) -> None:
    """Borders are those of the stored segments, in the flattened batch."""
    for batch in loader_of(packed, 4):
        assert "attention_mask" not in batch
        positions = batch["position_ids"].flatten()
        expected = [*torch.nonzero(positions == 0).flatten().tolist(), positions.numel()]
        assert batch["cu_seqlens"].tolist() == expected
        assert batch["max_seqlen"] == max(np.diff(expected))
        for ids, position in zip(batch["input_ids"], batch["position_ids"], strict=True):
            length = len(ids_of(number_of(ids.tolist())))
            cut = length // 2 if length >= 4 else length
            assert position[:cut].tolist() == list(range(cut))
            assert position[cut:length].tolist() == list(range(length - cut))
            assert position[length:].tolist() == list(range(len(position) - length))


def test_zstd_shards(tmp_path: Path, dataset: Path) -> None:
    """Compressed shards give the same samples; True shuffles them in windows."""
    make_dataset(tmp_path, SIZES, compression="zstd:1")
    loader = loader_of(tmp_path, 4)

    assert loader.arrangement.shuffle == "window"
    again = loader_of(dataset, 4, shuffle="window")
    for one, other in zip(loader, again, strict=True):
        assert one["input_ids"].equal(other["input_ids"])
        assert one["labels"].equal(other["labels"])


def test_sample_keys(dataset: Path) -> None:
    """keys name shard and sample of each row, and nothing for a padding row."""
    firsts = np.cumsum([0, *SIZES])
    for batch in loader_of(dataset, 50, sample_keys=True, drop_last=False):
        for key, number in zip(batch["keys"], numbers(batch), strict=False):
            shard, sample = key.split("/")
            assert firsts[int(shard[6:11])] + int(sample) == number
        assert batch["keys"][50 - batch["n_padding_rows"] :] == [""] * batch["n_padding_rows"]


def test_lanes_give_each_rank_its_own_shards(tmp_path: Path) -> None:
    """With equal shards and as many lanes as ranks, ranks share no shard."""
    make_dataset(tmp_path, [16] * 8)
    shards = []
    for rank in range(4):
        loader = loader_of(tmp_path, 4, rank=rank, world_size=4, sample_keys=True)
        shards.append({key.split("/")[0] for batch in loader for key in batch["keys"]})
    assert [len(names) for names in shards] == [2, 2, 2, 2]
    assert len(set().union(*shards)) == 8


def test_a_dataset_can_be_given(dataset: Path) -> None:
    """A ShardDataset works like its path with the same options; both at once are refused."""
    made = ShardDataset(dataset, seed=4, rank=0, world_size=1)
    expected = numbers_of(list(loader_of(dataset, 4, seed=4)))
    assert numbers_of(list(ShardLoader(made, 4))) == expected
    with pytest.raises(UsageError, match="seed"):
        ShardLoader(made, 4, seed=5)
    with pytest.raises(UsageError, match=r"(?s)'sede'.*seed"):
        ShardLoader(dataset, 4, sede=5)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="batch_size"):
        ShardLoader(dataset, 0)
