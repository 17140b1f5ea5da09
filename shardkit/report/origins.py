"""From a step of training to source rows, and back, by arithmetic (docs/format.md, section 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.format.layout import key_of
from shardkit.format.shard import Shard
from shardkit.report.data import Data
from shardkit.report.topology import Run, Topology

PieceSpan = tuple[int, int, int, int]
"""A piece of a source row: shard, row in it, start and length of the tokens."""
When = tuple[int | None, int | None, int | None, str]
"""Step, rank and row of the batch; or three times None, and why."""
N_TIMES = 10
"""Sightings of a piece that are told in an endless mixture."""


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
    """The first of its tokens in the row of the batch."""
    length: int
    """How many tokens it has."""
    first: int
    """Tokens of the sample that come before it, in another pack."""
    member: int = 0
    """The dataset of a mixture that it is from, from 0."""
    piece: int = 0
    """Which sample of its source row it is, where a row became several."""


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
    member: int = 0
    """The dataset of a mixture that it is from, from 0."""


def trace_batch(data: Data, topology: Topology, *, step: int, rank: int) -> list[Origin]:
    """The source row of every sample (and segment) in the batch of a rank at a step.

    Raises UsageError when there is no such step or rank, CorruptShard or MissingShard when an index
    cannot be read.
    """
    run = Run(topology, data)
    _check(run, step, rank)
    shards, rows = run.order.locate(run.positions(step, rank))
    slots = np.arange(len(rows))
    found: list[Origin] = []
    for number in np.unique(shards).tolist():
        member, own = run.members.place(number)
        dataset = run.members.datasets[member]
        shard, names = dataset.open_shard(own), dataset.builds[own].source_names
        here = shards == number
        for slot, row in zip(slots[here].tolist(), rows[here].tolist(), strict=True):
            found += [replace(one, member=member) for one in _origins(shard, names, slot, row)]
        shard.close()
    return sorted(found, key=lambda one: one.slot)


def find_row(data: Data, topology: Topology, *, source: str, row: int) -> list[Sighting]:
    """When a source row is seen in the epoch; several times when packing split it.

    In a mixture it is looked for in every member with such a source, and may be seen again and
    again: in an endless one the first ten times are told. A piece that no step holds is told
    too, with a note: drop_last left it out, it was served before the state from which the
    topology goes on, or the mixture's epoch ends before it.
    Raises UsageError when there is no such source, or the row is not held, CorruptShard or
    MissingShard when an index cannot be read.
    """
    run = Run(topology, data)
    datasets = run.members.datasets
    names = [dataset.manifest.source_names for dataset in datasets]
    if not any(source in own for own in names):
        raise UsageError(
            "the dataset has no such source",
            expected=", ".join(dict.fromkeys(name for own in names for name in own[:10])),
            found=source,
            fix="Give --row FILE:N with one of these.",
        )
    found = [
        sighting
        for member, dataset in enumerate(datasets)
        if source in names[member]
        for place in places_of_row(dataset, names[member].index(source), row)
        for sighting in _sightings(run, member, place)
    ]
    if not found:
        raise UsageError(
            f"row {row} of {source} is in no shard",
            fix="Look for it in rejects.jsonl: it may have been rejected.",
        )
    return found


def _sightings(run: Run, member: int, place: PieceSpan) -> Iterator[Sighting]:
    """When one piece of a row is seen, or why not."""
    number, row, start, length = place
    name = run.members.datasets[member].manifest.shards[number].name
    is_endless = run.n_samples is None
    first = run.topology.origin if is_endless else 0
    positions = run.order.seen_at(run.members.first_shard(member) + number, row, first)
    when: list[When] = [
        _when(run, position) for position in islice(positions, N_TIMES if is_endless else None)
    ]
    for seen in when or [(None, None, None, "not reached in this epoch of the mixture")]:
        yield Sighting(*seen[:3], name, key_of(row), start, length, seen[3], member)


def _when(run: Run, position: int) -> When:
    if position < run.topology.origin:
        return None, None, None, "before the state"
    if run.end is not None and position >= run.end:
        return None, None, None, "left out of this epoch: drop_last"
    return *run.place(position), ""


def _check(run: Run, step: int, rank: int) -> None:
    n, n_ranks = run.n_steps, run.topology.world_size
    if not 0 <= rank < n_ranks or step < 0 or (n is not None and step >= n):
        below = "" if n is None else f" and below {n}"
        raise UsageError(
            "there is no such batch",
            expected=f"a step from 0{below}, a rank from 0 and below {n_ranks}",
            found=f"step {step}, rank {rank}",
            fix="Correct --step, --rank, --world-size or --batch-size.",
        )


def _origins(shard: Shard, names: Sequence[str], slot: int, row: int) -> list[Origin]:
    if shard.segments is None:
        one = shard.index[row]
        own = [one[name].item() for name in ("n_tokens", "source", "record", "piece")]
        part = [[0, *own, 0]]
    else:
        fields = ("start", "length", "source", "record", "piece", "first")
        part = [[s[name].item() for name in fields] for s in shard.segments_of(row)]
    key = shard.key(row)
    return [
        Origin(slot, shard.name, key, names[source], record, start, length, first, piece=piece)
        for start, length, source, record, piece, first in part
    ]


def places_of_row(dataset: Dataset, source: int, row: int) -> list[PieceSpan]:
    """Every piece of a source row, by shard; raises CorruptShard or MissingShard."""
    places: list[PieceSpan] = []
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
