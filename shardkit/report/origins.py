"""From a step of training to source rows, and back, by arithmetic (docs/format.md, section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.format.shard import Shard
from shardkit.order.epoch import batch_positions
from shardkit.report.topology import Topology


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one sample of a batch, or one segment of a pack, comes from."""

    slot: int
    """Row in the batch."""
    shard: str
    key: str
    source: str
    row: int
    start: int
    length: int
    first: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """When and where a source row, or a piece of it in a pack, is seen."""

    step: int | None
    """From `origin` of the topology. None, and so rank and slot: not seen; `note` says why."""
    rank: int | None
    slot: int | None
    shard: str
    key: str
    start: int
    length: int
    note: str = ""


def trace_batch(dataset: Dataset, topology: Topology, *, step: int, rank: int) -> list[Origin]:
    """The source row of every sample (and segment) in the batch of a rank at a step.

    Raises UsageError when there is no such step or rank.
    """
    manifest = dataset.manifest
    _check(dataset, topology, step, rank)
    positions = batch_positions(
        step,
        1,
        batch_size=topology.batch_size,
        rank=rank,
        world_size=topology.world_size,
        origin=topology.origin,
    )[0]
    positions = positions[positions < manifest.n_samples]
    shards, rows = topology.order(dataset).locate(positions)
    opened = {number: dataset.open_shard(number) for number in np.unique(shards).tolist()}
    return [
        origin
        for slot, (number, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True))
        for origin in _origins(opened[number], dataset.builds[number].source_names, slot, row)
    ]


def find_row(dataset: Dataset, topology: Topology, *, source: str, row: int) -> list[Sighting]:
    """When a source row is seen in the epoch; several times when packing split it.

    A piece that no step holds is told too, with a note: drop_last left it out, or it was served
    before the state from which the topology goes on.
    Raises UsageError when the dataset has no such source, or does not hold the row.
    """
    manifest = dataset.manifest
    names = manifest.source_names
    if source not in names:
        raise UsageError(
            "the dataset has no such source",
            expected=", ".join(names[:10]),
            found=source,
            fix="Give --row FILE:N with one of these.",
        )
    places = _places_of(dataset, names.index(source), row)
    if not places:
        raise UsageError(
            f"row {row} of {source} is in no shard",
            fix="Look for it in rejects.jsonl: it may have been rejected.",
        )
    numbers = np.array([place[0] for place in places])
    rows = np.array([place[1] for place in places])
    positions = topology.order(dataset).positions_of(numbers, rows).astype(np.int64)
    n = topology.n_steps(dataset)
    found = []
    for (number, at, start, length), position in zip(places, positions.tolist(), strict=True):
        name = manifest.shards[number].name
        seen = _when(position, topology, n)
        found.append(Sighting(*seen[:3], name, f"{at:08d}", start, length, seen[3]))
    return found


def _when(
    position: int, topology: Topology, n_steps: int
) -> tuple[int | None, int | None, int | None, str]:
    """The step, rank and slot of a position, or three times None and why."""
    step, within = divmod(position - topology.origin, topology.global_batch_size)
    if step < 0:
        return None, None, None, "before the state"
    if step >= n_steps:
        return None, None, None, "left out of this epoch: drop_last"
    return step, *divmod(within, topology.batch_size), ""


def _check(dataset: Dataset, topology: Topology, step: int, rank: int) -> None:
    n = topology.n_steps(dataset)
    if not 0 <= rank < topology.world_size or not 0 <= step < n:
        raise UsageError(
            "there is no such batch",
            expected=f"a step from 0 and below {n}, a rank from 0 and below {topology.world_size}",
            found=f"step {step}, rank {rank}",
            fix="Correct --step, --rank, --world-size or --batch-size.",
        )


def _origins(shard: Shard, names: Sequence[str], slot: int, row: int) -> list[Origin]:
    if shard.segments is None:
        one = shard.index[row]
        part = [(0, int(one["n_tokens"]), int(one["source"]), int(one["record"]), 0)]
    else:
        fields = ("start", "length", "source", "record", "first")
        part = [tuple(int(s[name]) for name in fields) for s in shard.segments_of(row)]  # type: ignore[misc]
    return [
        Origin(slot, shard.name, shard.key(row), names[source], record, start, length, first)
        for start, length, source, record, first in part
    ]


def _places_of(dataset: Dataset, source: int, row: int) -> list[tuple[int, int, int, int]]:
    """(shard, row in it, start, length) of every piece of a source row."""
    places: list[tuple[int, int, int, int]] = []
    for number, build in enumerate(dataset.builds):
        if not 0 <= source - build.first_source < len(build.source_names):
            continue
        shard, own = dataset.open_shard(number), source - build.first_source
        if shard.segments is None:
            for i in _matching(shard.index, own, row):
                places.append((number, i, 0, int(shard.index["n_tokens"][i])))
        else:
            for i in _matching(shard.segments, own, row):
                one = shard.segments[i]
                places.append((number, int(one["sample"]), int(one["start"]), int(one["length"])))
        shard.close()
    return places


def _matching(table: NDArray[np.void], source: int, row: int) -> list[int]:
    found: list[int] = np.flatnonzero(
        (table["source"] == source) & (table["record"] == row)
    ).tolist()
    return found
