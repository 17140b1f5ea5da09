"""trace: a step to rows and back, against the batches that the loader really serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import make_dataset, n_tokens_of, number_of

from shardkit.dataset import open_dataset
from shardkit.errors import UsageError
from shardkit.loader import ShardLoader
from shardkit.report import Topology, find_row, trace_batch

SIZES = [7, 5, 11]
TOPOLOGY = Topology(world_size=2, batch_size=3, seed=5, epoch=1, drop_last=False)


def served(path: Path) -> dict[tuple[int, int], list[int]]:
    """(step, rank) to the source rows of the batch, by reading all batches."""
    found = {}
    for rank in range(TOPOLOGY.world_size):
        loader = ShardLoader(
            path, 3, rank=rank, world_size=TOPOLOGY.world_size, seed=5, drop_last=False
        )
        loader.set_epoch(TOPOLOGY.epoch)
        for step, batch in enumerate(loader):
            rows = batch["input_ids"][: 3 - batch["n_padding_rows"]].tolist()
            found[step, rank] = [number_of(row) for row in rows]
    return found


def test_a_batch_is_what_the_loader_serves(tmp_path: Path) -> None:
    """Every step of every rank: the same rows in the same slots."""
    make_dataset(tmp_path, SIZES)
    dataset = open_dataset(tmp_path)
    batches = served(tmp_path)
    assert sorted(row for rows in batches.values() for row in rows) == list(range(sum(SIZES)))
    for (step, rank), rows in batches.items():
        found = trace_batch(dataset, TOPOLOGY, step=step, rank=rank)
        assert [origin.row for origin in found] == rows
        assert [origin.slot for origin in found] == list(range(len(rows)))
        for origin in found:
            assert (origin.source, origin.start, origin.first) == ("rows.json", 0, 0)
            assert origin.length == n_tokens_of(origin.row)


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_found_where_it_is_served(tmp_path: Path, packed: bool) -> None:
    """find_row is the inverse of trace_batch; a pack's pieces are all found."""
    make_dataset(tmp_path, SIZES, packed=packed)
    dataset = open_dataset(tmp_path)
    expected: dict[int, list[tuple[int, int, int, str, str, int, int]]] = {}
    for step in range(4):
        for rank in range(2):
            for o in trace_batch(dataset, TOPOLOGY, step=step, rank=rank):
                place = (step, rank, o.slot, o.shard, o.key, o.start, o.length)
                expected.setdefault(o.row, []).append(place)
    assert sorted(expected) == list(range(sum(SIZES)))
    for row, places in expected.items():
        found = find_row(dataset, TOPOLOGY, source="rows.json", row=row)
        assert [
            (s.step, s.rank, s.slot, s.shard, s.key, s.start, s.length) for s in found
        ] == places
        assert sum(s.length for s in found) == n_tokens_of(row)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """A step, rank, source or row too many."""
    make_dataset(tmp_path, SIZES)
    dataset = open_dataset(tmp_path)
    for step, rank in [(4, 0), (-1, 0), (0, 2), (0, -1)]:
        with pytest.raises(UsageError, match="no such batch"):
            trace_batch(dataset, TOPOLOGY, step=step, rank=rank)
    with pytest.raises(UsageError, match="no such source"):
        find_row(dataset, TOPOLOGY, source="other.json", row=0)
    with pytest.raises(UsageError, match="is in no shard"):
        find_row(dataset, TOPOLOGY, source="rows.json", row=23)
