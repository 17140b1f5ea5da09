"""P9: from dataset, seed, step and rank alone: which source file and row made this token."""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import TOKENIZER, alpaca_rows, pack_small, write_json
from tokenizers import Tokenizer

from shardkit.builder import append
from shardkit.dataset import Dataset, open_dataset
from shardkit.errors import StateMismatch, UsageError
from shardkit.loader import ShardLoader
from shardkit.report import Topology, find_row, topology_of_state, trace_batch

Place = tuple[int, int, int, int, int]
"""Step, rank, row of the batch, start and length in it."""
Served = dict[tuple[str, int], list[Place]]
"""(source, row) → where it was served."""

KINDS: dict[str, dict[str, Any]] = {
    "samples": {"max_length": 34},
    "packs": {"packing": "best-fit", "shuffle_seed": 3},
    "cut packs": {"packing": "concat", "compression": "zstd:1"},
    "two builds": {"packing": "concat"},
}
"""Some samples are truncated, some packs begin in the middle of a row, some rows are rejected."""
N_ROWS = {"one.json": 70, "two.json": 45}
_folders: list[TemporaryDirectory[str]] = []


@cache
def rows_of(source: str) -> list[Any]:
    """The records of a source file."""
    return alpaca_rows(N_ROWS[source], seed=N_ROWS[source], n_bad=3)


@cache
def dataset_of(kind: str) -> Dataset:
    """The dataset of a kind, made once, of two source files."""
    _folders.append(TemporaryDirectory())
    folder = Path(_folders[-1].name)
    files = [write_json(folder / name, rows_of(name)) for name in N_ROWS]
    options = {"part_rows": 30, "shard_size": 12_000, **KINDS[kind]}
    if kind == "two builds":
        pack_small(files[0], folder / "out", **options)
        append(folder / "out", files[1], engine="hf")
    else:
        pack_small(files, folder / "out", **options)  # type: ignore[arg-type]
    return open_dataset(folder / "out")


@cache
def tokens_of(source: str, row: int) -> list[int]:
    """A row's tokens, made from the source by the tokenizers library alone."""
    record = rows_of(source)[row]
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    pieces = [
        f"<|im_start|>user\n{record['instruction']}\n<|im_end|>\n<|im_start|>assistant\n",
        record["output"],
        "<|im_end|>",
        "\n",
    ]
    ids = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
    bos = tokenizer.token_to_id("<|endoftext|>")
    assert bos is not None
    return sum(ids, [bos])


def loaders_of(dataset: Dataset, topology: Topology, state: Any = None) -> list[ShardLoader]:
    """The loaders of all ranks of a run, at the start of the topology's epoch."""
    loaders = []
    for rank in range(topology.world_size):
        loader = ShardLoader(
            dataset.root,
            topology.batch_size,
            rank=rank,
            world_size=topology.world_size,
            seed=topology.seed,
            shuffle=True if topology.shuffle is None else topology.shuffle,
            window=topology.window,
            lanes=topology.lanes,
            drop_last=topology.drop_last,
            sample_keys=True,
            prefetch=0,
        )
        if state is not None:
            loader.load_state_dict(state)
        loader.set_epoch(topology.epoch)
        loaders.append(loader)
    return loaders


def check_batches(dataset: Dataset, topology: Topology, loaders: list[ShardLoader]) -> Served:
    """Every batch to the end of the epoch is what trace says; where each row was served."""
    served: Served = defaultdict(list)
    for rank, loader in enumerate(loaders):
        assert loader.n_remaining == topology.n_steps(dataset)
        for step, batch in enumerate(loader):
            traced = trace_batch(dataset, topology, step=step, rank=rank)
            keys = {one.slot: f"{one.shard}/{one.key}" for one in traced}
            assert [keys.get(i, "") for i in range(topology.batch_size)] == batch["keys"]
            ends: dict[int, int] = defaultdict(int)
            for one in traced:
                assert one.start == ends[one.slot], "segments lie end to end"
                ends[one.slot] = end = one.start + one.length
                expected = tokens_of(one.source, one.row)[one.first : one.first + one.length]
                assert batch["input_ids"][one.slot, one.start : end].tolist() == expected
                positions = batch["position_ids"][one.slot, one.start : end].tolist()
                assert positions == [*range(one.length)]
                served[one.source, one.row].append((step, rank, one.slot, one.start, one.length))
            for slot, end in ends.items():
                assert set(batch["input_ids"][slot, end:].tolist()) <= {pad_of(dataset)}
        with pytest.raises(UsageError, match="no such batch"):
            trace_batch(dataset, topology, step=topology.n_steps(dataset), rank=rank)
    return served


def pad_of(dataset: Dataset) -> int:
    """The id that fills the rows of a batch."""
    pad: int = dataset.manifest.recipe["tokenizer"]["special_ids"]["pad"]
    return pad


def check_rows(dataset: Dataset, topology: Topology, served: Served) -> set[str]:
    """Every row of the sources is found exactly where it was served; the notes of the others."""
    notes = set()
    for source in N_ROWS:
        for row, record in enumerate(rows_of(source)):
            if not isinstance(record, dict) or record.get("output") in (None, "<nooutput>"):
                with pytest.raises(UsageError, match=r"rejects.jsonl"):
                    find_row(dataset, topology, source=source, row=row)
                continue
            found = find_row(dataset, topology, source=source, row=row)
            seen: list[Any] = [
                (s.step, s.rank, s.slot, s.start, s.length) for s in found if not s.note
            ]
            assert found
            assert sorted(seen) == sorted(served[source, row])
            for one in found:
                parts = (one.step, one.rank, one.slot)
                assert (parts == (None, None, None)) == bool(one.note)
                notes.add(one.note)
    return notes


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """How a run may be set up."""
    return Topology(
        world_size=draw(st.integers(1, 4)),
        batch_size=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 1000)),
        epoch=draw(st.integers(0, 3)),
        shuffle=draw(st.sampled_from([None, "full", "window", "none"])),
        window=draw(st.sampled_from([5, 4096])),
        lanes=draw(st.sampled_from([None, None, 1, 3])),
        drop_last=draw(st.booleans()),
    )


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from([*KINDS]), topology=topologies())
def test_every_token_of_an_epoch(kind: str, topology: Topology) -> None:
    """What trace names is what the loader served, segment by segment, and the other way round."""
    dataset = dataset_of(kind)
    served = check_batches(dataset, topology, loaders_of(dataset, topology))
    notes = check_rows(dataset, topology, served)

    left_out = dataset.manifest.n_samples % topology.global_batch_size
    dropped = {"left out of this epoch: drop_last"}
    assert notes == {""} | (dropped if topology.drop_last and left_out else set())


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from([*KINDS]),
    before=topologies(),
    after=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    n=st.integers(0, 12),
    later=st.integers(0, 1),
)
def test_every_token_after_a_resume(
    kind: str, before: Topology, after: tuple[int, int], n: int, later: int
) -> None:
    """The saved state is enough, whatever the ranks and batch sizes before and after."""
    dataset = dataset_of(kind)
    loader = loaders_of(dataset, before)[0]
    for _ in zip(range(n), loader, strict=False):
        pass
    state = loader.state_dict()
    run: dict[str, Any] = {"world_size": after[0], "batch_size": after[1]}
    run["drop_last"] = before.drop_last
    topology = topology_of_state(dataset, state, **run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another global batch size
        loaders = loaders_of(dataset, topology, state)
        assert loaders[0].epoch == topology.epoch
        if later:
            topology = topology_of_state(dataset, state, epoch=topology.epoch + 1, **run)
            loaders = loaders_of(dataset, topology, state)

    served = check_batches(dataset, topology, loaders)
    notes = check_rows(dataset, topology, served)
    assert ("before the state" in notes) == bool(topology.origin)
    assert topology.origin == 0 or not later


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_rest_too_small_for_a_step(drop_last: bool) -> None:
    """Where the loader goes to the next epoch, so does trace."""
    dataset = dataset_of("samples")
    first = Topology(1, 4, drop_last=drop_last)
    (loader,) = loaders_of(dataset, first)
    state = loader.state_dict() | {"position": dataset.manifest.n_samples // 4 * 4 - 4}
    topology = topology_of_state(dataset, state, world_size=2, batch_size=5, drop_last=drop_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another global batch size
        after = ShardLoader(dataset.root, 5, rank=0, world_size=2, drop_last=drop_last)
        after.load_state_dict(state)
    assert (topology.epoch, topology.origin) == (after.epoch, after.state_dict()["position"])
    assert topology.epoch == (1 if drop_last else 0)


def test_a_state_that_does_not_fit_is_refused() -> None:
    """Another dataset, an epoch that was before, and batches of like length."""
    dataset = dataset_of("samples")
    run: dict[str, Any] = {"world_size": 2, "batch_size": 2}
    loader = ShardLoader(dataset.root, 2, rank=0, world_size=2, epoch=2)
    state = loader.state_dict()
    with pytest.raises(StateMismatch, match="another dataset"):
        topology_of_state(dataset_of("packs"), state, **run)
    with pytest.raises(UsageError, match="before the state"):
        topology_of_state(dataset, state, epoch=1, **run)
    with pytest.raises(UsageError, match="group_by_length"):
        topology_of_state(dataset, state | {"group": 8}, **run)
