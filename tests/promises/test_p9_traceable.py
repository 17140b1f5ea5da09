"""P9: from dataset, seed, step and rank alone: which source file and row made this token."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import TOKENIZER, alpaca_rows, pack_small, write_json
from synthetic import make_dataset, make_recipe
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from shardkit.builder import append
from shardkit.dataset import Dataset, open_dataset
from shardkit.errors import StateMismatch, UsageError
from shardkit.loader import ShardDataset, ShardLoader, ShardMixture
from shardkit.loader.options import DatasetOptions
from shardkit.order.mixture import Until
from shardkit.report import Mixture, Origin, Topology, find_row, topology_of_state, trace_batch
from shardkit.report.data import Data
from shardkit.report.topology import Run

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
MIXTURES: dict[str, tuple[str, Until, list[float]]] = {
    "mixture": ("samples", "first", [2, 1]),
    "mixture of packs": ("packs", "all", [0.25, 0.75]),
    "endless mixture": ("cut packs", "endless", [3, 2]),
}
"""The kind of the members, the end of an epoch, and the weights. Both members hold one.json."""
N_ENDLESS = 12
"""Steps that are compared of a run without end."""
ANY_KIND = st.sampled_from([*KINDS, *MIXTURES])
_folders: list[TemporaryDirectory[str]] = []


@cache
def rows_of(source: str) -> list[Any]:
    """The records of a source file."""
    return alpaca_rows(N_ROWS[source], seed=N_ROWS[source], n_bad=3)


def data_of(kind: str) -> Data:
    """A dataset of two source files; or a mixture of one of the first file, and one of both."""
    if kind not in MIXTURES:
        return dataset_of(kind)
    members, until, weights = MIXTURES[kind]
    return Mixture([dataset_of(members, ("one.json",)), dataset_of(members)], weights, until)


@cache
def dataset_of(kind: str, names: tuple[str, ...] = tuple(N_ROWS)) -> Dataset:
    """The dataset of a kind, made once, of these source files."""
    _folders.append(TemporaryDirectory())
    folder = Path(_folders[-1].name)
    files = [write_json(folder / name, rows_of(name)) for name in names]
    options = {"part_rows": 30, "shard_size": 12_000, **KINDS[kind]}
    if kind == "two builds":
        pack_small(files[0], folder / "out", **options)
        append(folder / "out", files[1], engine="hf")
    else:
        pack_small(files, folder / "out", **options)
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


def opened(data: Data, topology: Topology, rank: int) -> ShardDataset:
    """What the loader of a rank reads."""
    options: DatasetOptions = {
        "rank": rank,
        "world_size": topology.world_size,
        "seed": topology.seed,
        "epoch": topology.epoch,
        "shuffle": True if topology.shuffle is None else topology.shuffle,
        "window": topology.window,
        "drop_last": topology.drop_last,
    }
    if isinstance(data, Dataset):
        return ShardDataset(data.root, **options)
    members = {dataset.root: w for dataset, w in zip(data.datasets, data.weights, strict=True)}
    return ShardMixture(members, until=data.until, **options)


def loaders_of(data: Data, topology: Topology, state: Any = None) -> list[ShardLoader]:
    """The loaders of all ranks of a run, at the start of the topology's epoch."""
    loaders = []
    for rank in range(topology.world_size):
        loader = ShardLoader(
            opened(data, replace(topology, epoch=0), rank),
            topology.batch_size,
            lanes=topology.lanes,
            group_by_length=topology.group_by_length,
            sample_keys=True,
            prefetch=0,
        )
        if state is not None:
            loader.load_state_dict(state)
        loader.set_epoch(topology.epoch)
        loaders.append(loader)
    return loaders


def key_of(data: Data, one: Origin) -> str:
    """The sample's key as a batch has it."""
    member = "" if isinstance(data, Dataset) else f"{one.member}/"
    return f"{member}{one.shard}/{one.key}"


def check_batches(data: Data, topology: Topology, loaders: Sequence[Any]) -> Served:
    """Every batch to the end of the epoch is what trace says; where each row was served."""
    served: Served = defaultdict(list)
    n_steps = topology.n_steps(data)
    for rank, loader in enumerate(loaders):
        step = -1
        for step, batch in enumerate(islice(loader, N_ENDLESS if n_steps is None else None)):
            traced = trace_batch(data, topology, step=step, rank=rank)
            keys = {one.slot: key_of(data, one) for one in traced}
            if "keys" in batch:
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
                assert set(batch["input_ids"][slot, end:].tolist()) <= {pad_of(data)}
            for slot in {*range(len(batch["input_ids"]))} - {*ends}:
                assert set(batch["labels"][slot].tolist()) == {-100}, "a row that trace knows not"
        if n_steps is None:
            continue
        assert step + 1 == n_steps
        with pytest.raises(UsageError, match="no such batch"):
            trace_batch(data, topology, step=n_steps, rank=rank)
    return served


def pad_of(data: Data) -> int:
    """The id that fills the rows of a batch."""
    dataset = data if isinstance(data, Dataset) else data.datasets[0]
    pad: int = dataset.manifest.recipe["tokenizer"]["special_ids"]["pad"]
    return pad


def check_rows(data: Data, topology: Topology, served: Served) -> set[str]:
    """Every row of the sources is found exactly where it was served; the notes of the others."""
    notes = set()
    last, every = (N_ENDLESS, 20) if topology.n_steps(data) is None else (10**9, 6)
    for source in N_ROWS:
        for row, record in enumerate(rows_of(source)):
            if row % (1 if isinstance(data, Dataset) else every):
                continue  # a mixture holds a row at many places
            if not isinstance(record, dict) or record.get("output") in (None, "<nooutput>"):
                with pytest.raises(UsageError, match=r"rejects.jsonl"):
                    find_row(data, topology, source=source, row=row)
                continue
            found = find_row(data, topology, source=source, row=row)
            seen: list[Any] = [
                (s.step, s.rank, s.slot, s.start, s.length)
                for s in found
                if s.step is not None and s.step < last
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
        group_by_length=draw(st.booleans()),
    )


def fitted(data: Data, topology: Topology) -> Topology:
    """Without what a mixture has not."""
    return topology if isinstance(data, Dataset) else replace(topology, lanes=None)


def check_notes(data: Data, topology: Topology, notes: set[str]) -> None:
    """Rows are left out only for the reasons that this run has."""
    n, dropped = Run(topology, data).n_samples, {"left out of this epoch: drop_last"}
    rest = 0 if n is None else (n - topology.origin) % topology.global_batch_size
    may = {"", *(dropped if topology.drop_last and rest else ())}
    may |= {"before the state"} if topology.origin and n is not None else set()
    if isinstance(data, Dataset):
        assert notes == may
    else:  # not all rows were asked for
        assert notes <= may | {"not reached in this epoch of the mixture"}


@pytest.mark.slow
@settings(max_examples=12)
@given(kind=ANY_KIND, topology=topologies())
def test_every_token_of_an_epoch(kind: str, topology: Topology) -> None:
    """What trace names is what the loader served, segment by segment, and the other way round."""
    data = data_of(kind)
    topology = fitted(data, topology)
    served = check_batches(data, topology, loaders_of(data, topology))
    check_notes(data, topology, check_rows(data, topology, served))


@pytest.mark.slow
@settings(max_examples=12)
@given(
    kind=ANY_KIND,
    before=topologies(),
    after=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    n=st.integers(0, 12),
    later=st.integers(0, 1),
)
def test_every_token_after_a_resume(
    kind: str, before: Topology, after: tuple[int, int], n: int, later: int
) -> None:
    """The saved state is enough, whatever the ranks and batch sizes before and after."""
    data = data_of(kind)
    loader = loaders_of(data, fitted(data, before))[0]
    for _ in zip(range(n), loader, strict=False):
        pass
    state = loader.state_dict()
    run: dict[str, Any] = {"world_size": after[0], "batch_size": after[1]}
    run["drop_last"] = before.drop_last
    topology = topology_of_state(data, state, **run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another global batch size
        loaders = loaders_of(data, fitted(data, topology), state)
        assert loaders[0].epoch == topology.epoch
        if later:
            topology = topology_of_state(data, state, epoch=topology.epoch + 1, **run)
            loaders = loaders_of(data, fitted(data, topology), state)

    served = check_batches(data, topology, loaders)
    check_notes(data, topology, check_rows(data, topology, served))
    assert topology.origin == 0 or not later


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:the epoch is empty")
@settings(max_examples=6)
@given(kind=ANY_KIND, topology=topologies(), n_workers=st.integers(0, 3))
def test_every_token_under_a_plain_data_loader(
    kind: str, topology: Topology, n_workers: int
) -> None:
    """ShardDataset and ShardMixture under torch's DataLoader, workers and all."""
    data = data_of(kind)
    topology = replace(topology, lanes=None, group_by_length=False, data_loader_workers=n_workers)
    datasets = [opened(data, topology, rank) for rank in range(topology.world_size)]
    loaders = [
        DataLoader(one, topology.batch_size, num_workers=n_workers, collate_fn=one.collate)
        for one in datasets
    ]
    served = check_batches(data, topology, loaders)
    check_rows(data, topology, served)


@settings(max_examples=10)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(0, 5))
def test_images_count_when_samples_are_grouped(world_size: int, batch_size: int, n: int) -> None:
    """Before and after a resume, whatever the loader makes of an image: the index has lengths."""
    place = pictures()
    run: dict[str, Any] = {"world_size": world_size, "batch_size": batch_size}

    def loader(rank: int) -> ShardLoader:
        dataset = ShardDataset(
            place, rank=rank, world_size=world_size, drop_last=False,
            expand_image_tokens=4, image_token_id=7,
        )  # fmt: skip
        return ShardLoader(dataset, batch_size, group_by_length=True, sample_keys=True, prefetch=0)

    def check(topology: Topology, loaders: list[ShardLoader]) -> None:
        for rank, one in enumerate(loaders):
            for step, batch in enumerate(one):
                traced = trace_batch(open_dataset(place), topology, step=step, rank=rank)
                found = [f"{origin.shard}/{origin.key}" for origin in traced]
                assert found == [key for key in batch["keys"] if key]

    fresh = Topology(**run, group_by_length=True, drop_last=False)
    loaders = [loader(rank) for rank in range(world_size)]
    check(fresh, loaders)
    first = loader(0)
    for _ in zip(range(n), first, strict=False):
        pass
    state = first.state_dict()
    for one in loaders:
        one.load_state_dict(state)
    check(topology_of_state(open_dataset(place), state, drop_last=False, **run), loaders)


@cache
def pictures() -> Path:
    """59 samples; every third one has an image or two."""
    _folders.append(TemporaryDirectory())
    place = Path(_folders[-1].name)
    n_images = {k: 1 + k % 2 for k in range(0, 59, 3)}
    recipe = make_recipe(images=True, max_length=None)
    recipe["images"]["image_tokens"] = None
    make_dataset(place, (23, 30, 6), n_images=n_images, recipe=recipe)
    return place


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
    """Another dataset, other weights, another end of the mixture, an epoch that was before."""
    dataset = dataset_of("samples")
    run: dict[str, Any] = {"world_size": 2, "batch_size": 2}
    loader = ShardLoader(dataset.root, 2, rank=0, world_size=2, epoch=2)
    state = loader.state_dict()
    with pytest.raises(StateMismatch, match="another dataset"):
        topology_of_state(dataset_of("packs"), state, **run)
    with pytest.raises(UsageError, match="before the state"):
        topology_of_state(dataset, state, epoch=1, **run)
    mixture = data_of("mixture")
    assert isinstance(mixture, Mixture)
    state = loaders_of(mixture, Topology(2, 2))[0].state_dict()
    assert topology_of_state(mixture, state, **run).n_steps(mixture) is not None
    for changed in ({"weights": [1, 2]}, {"until": "all"}, {"datasets": mixture.datasets[::-1]}):
        with pytest.raises(StateMismatch, match="another dataset"):
            topology_of_state(replace(mixture, **changed), state, **run)
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(UsageError, match="weight above 0"):
            replace(mixture, weights=weights)
