"""ShardDataset under a plain DataLoader, and ShardTable."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import ids_of, make_dataset, n_tokens_of, number_of
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from shardkit.errors import (
    CorruptShard,
    IdentityMismatch,
    MissingShard,
    StateMismatch,
    StorageError,
    UsageError,
)
from shardkit.format.layout import TOKENS_START
from shardkit.loader import ShardDataset, ShardLoader, ShardMixture, ShardTable
from shardkit.loader.collate import as_words
from shardkit.loader.frames import Frame, FrameCache

SIZES = [37, 0, 21, 60, 5]
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """123 samples in five uneven shards."""
    path = tmp_path_factory.mktemp("plain")
    make_dataset(path, SIZES)
    return path


def numbers(batch: dict[str, Any]) -> list[int]:
    """The samples of a batch, padding left out."""
    rows = batch["input_ids"].tolist()
    return [number_of(row) for row in rows if len(row) > 1 and row[0] >= 1000]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("n_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_plain_data_loader_is_right(dataset: Path, n_workers: int, drop_last: bool) -> None:
    """Ranks and workers share the samples out: disjoint, complete, equally many batches."""
    seen, counts = [], set()
    for rank in range(4):
        samples = ShardDataset(dataset, rank=rank, world_size=4, drop_last=drop_last, seed=1)
        loader = DataLoader(
            samples, batch_size=5, num_workers=n_workers, collate_fn=samples.collate
        )
        batches = list(loader)
        counts.add((len(samples), len(batches), sum(len(b["input_ids"]) for b in batches)))
        seen += [number for batch in batches for number in numbers(batch)]

    per_rank = TOTAL // 4 if drop_last else -(-TOTAL // 4)
    assert len(counts) == 1
    assert counts.pop()[::2] == (per_rank, per_rank)
    assert len(seen) == len(set(seen)) == (per_rank * 4 if drop_last else TOTAL)


def test_each_worker_reads_a_lane_of_its_own(tmp_path: Path) -> None:
    """With equal shards, ranks and workers share no shard."""
    make_dataset(tmp_path, [8] * 8)
    for rank in range(2):
        samples = ShardDataset(tmp_path, rank=rank, world_size=2)
        loader = DataLoader(samples, batch_size=4, num_workers=2, collate_fn=samples.collate)
        by_worker: list[set[int]] = [set(), set()]
        for step, batch in enumerate(loader):
            by_worker[step % 2] |= {number // 8 for number in numbers(batch)}
        assert [len(shards) for shards in by_worker] == [2, 2]


def test_samples(dataset: Path) -> None:
    """A sample is int64 ids and labels that may be written to."""
    sample = next(iter(ShardDataset(dataset, shuffle=False, rank=0, world_size=1)))

    assert sample["input_ids"].tolist() == ids_of(0).tolist()
    assert sample["labels"].tolist() == [-100, -100, *ids_of(0)[2:].tolist()]
    assert sample["input_ids"].dtype == torch.int64
    sample["labels"][0] = 3


def test_epochs_differ_and_repeat(dataset: Path) -> None:
    """set_epoch chooses the order; the same epoch is the same again."""
    samples = ShardDataset(dataset, rank=0, world_size=1)
    orders = []
    for epoch in (0, 1, 0):
        samples.set_epoch(epoch)
        orders.append([number_of(sample["input_ids"].tolist()) for sample in samples])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(TOTAL))


def test_packed_samples(tmp_path: Path) -> None:
    """Packs have position_ids, and collate makes borders of them."""
    make_dataset(tmp_path, [6], packed=True)
    samples = ShardDataset(tmp_path, shuffle=False, rank=0, world_size=1)
    batch = next(iter(DataLoader(samples, batch_size=6, collate_fn=samples.collate)))

    assert "attention_mask" not in batch
    assert (batch["position_ids"] == 0).sum() == len(batch["cu_seqlens"]) - 1


def test_a_wrong_shuffle_is_refused(dataset: Path) -> None:
    """The error lists the choices."""
    with pytest.raises(UsageError, match="window"):
        ShardDataset(dataset, shuffle="all")  # type: ignore[arg-type]


def test_the_world_is_found_late(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that is made before the launcher's variables are set takes them when it is used."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    samples = ShardDataset(dataset)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")

    assert len(samples) == TOTAL // 3
    assert len(pickle.loads(pickle.dumps(samples))) == TOTAL // 3


def test_the_table(dataset: Path) -> None:
    """Every sample by number, from the end too; lengths without reading; IndexError beyond."""
    table = ShardTable(dataset)

    assert len(table) == TOTAL
    assert table.lengths.tolist() == [n_tokens_of(k) for k in range(TOTAL)]
    assert table.n_images.tolist() == [0] * TOTAL
    for i in (0, 36, 37, 58, 122):
        assert table[i]["input_ids"].tolist() == ids_of(i).tolist()
        assert table[i - TOTAL]["input_ids"].equal(table[i]["input_ids"])
    assert table[58]["key"] == "shard-00003.tar/00000000"
    for i in (TOTAL, -TOTAL - 1):
        with pytest.raises(IndexError, match=str(TOTAL)):
            table[i]
    assert [number_of(sample["input_ids"].tolist()) for sample in table] == list(range(TOTAL))
    assert pickle.loads(pickle.dumps(table))[3]["key"] == "shard-00000.tar/00000003"


@pytest.mark.parametrize("packed", [False, True])
def test_the_ways_to_read_by_number_agree(tmp_path: Path, packed: bool) -> None:
    """One by one or in lists, long or short, plain or compressed shards: the same samples."""
    lengths = [3 + (k * 7919 >> 2) % (3000 if k % 5 == 0 else 40) for k in range(90)]
    for name in ("none", "zstd:1"):
        make_dataset(tmp_path / name, [40, 1, 49], packed=packed, lengths=lengths, compression=name)
    plain, squeezed = ShardTable(tmp_path / "none"), ShardTable(tmp_path / "zstd:1")
    wanted = [89, -90, 40, 41, 39, 0, 5, 5, *range(90)]
    for numbers in (wanted, wanted[:3], []):
        lists = [table.__getitems__(numbers) for table in (plain, squeezed)]
        single = [[table[i] for i in numbers] for table in (plain, squeezed)]
        for found in (*lists, *single):
            assert [sample["key"].split("/")[1] for sample in found] == [
                sample["key"].split("/")[1] for sample in lists[0]
            ]
            for sample, other, i in zip(found, lists[0], numbers, strict=True):
                assert sample.keys() == other.keys()
                assert all(sample[name].equal(other[name]) for name in sample.keys() - {"key"})
                n = len(sample["input_ids"])
                assert sample["input_ids"].tolist() == ids_of(i % 90, n).tolist()
                assert n == lengths[i % 90]
    loader = torch.utils.data.DataLoader(plain, batch_size=8, collate_fn=plain.collate)
    assert [key for batch in loader for key in batch["keys"]] == [s["key"] for s in plain]


def test_a_list_checks_what_it_reads(tmp_path: Path) -> None:
    """A flipped bit in one of the samples of a list is an error that names it, each time."""
    make_dataset(tmp_path, [30])
    offset = int(ShardTable(tmp_path).reader.open(0).shard.index["offset"][7]) + TOKENS_START
    path = tmp_path / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
    table = ShardTable(tmp_path)
    assert len(table.__getitems__([*range(7), *range(8, 30)])) == 29
    for _ in range(2):
        with pytest.raises(CorruptShard, match="sample 00000007"):
            table.__getitems__([3, 7, 9])


def test_the_table_gives_images_as_bytes(tmp_path: Path) -> None:
    """The encoded images of a sample, in reading order; the key is missing without images."""
    make_dataset(tmp_path, [3], n_images={1: 2})
    table = ShardTable(tmp_path)

    assert [image[:4] for image in table[1]["images"]] == [b"\x89PNG"] * 2
    assert "images" not in table[0]
    assert table.n_images.tolist() == [0, 2, 0]


def test_a_frame_that_was_read_wrong_once_is_not_served(tmp_path: Path) -> None:
    """The file is right, what was uncompressed of it is not: a flipped bit of the memory."""
    make_dataset(tmp_path, [3], compression="zstd:1")
    reader = ShardTable(tmp_path).reader
    block = reader.find(np.zeros(3, np.int64), np.arange(3))
    assert block.frames is not None
    shard, key = block.opened[1].shard, block.frames[1]
    data = bytearray(shard.frame(key[1]))
    data[4 * block.starts[1]] ^= 4
    frame = memoryview(bytes(data))
    reader._frames._frames[key] = Frame(as_words(frame), frame)

    with pytest.raises(CorruptShard, match=r"shard-00000\.tar.* did not match its hash"):
        reader.read(block, 0, 3)
    assert list(reader.read(block, 0, 3)[1])[: n_tokens_of(1)] == ids_of(1).tolist()


def test_the_table_checks_what_it_reads(tmp_path: Path) -> None:
    """A flipped bit in a sample is an error that names it, for that sample only."""
    make_dataset(tmp_path, [3])
    table = ShardTable(tmp_path)
    offset = int(table.reader.open(0).shard.index["offset"][1]) + TOKENS_START
    del table
    path = tmp_path / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
    table = ShardTable(tmp_path)

    assert table[0]["input_ids"].tolist() == ids_of(0).tolist()
    with pytest.raises(CorruptShard, match=r"shard-00000\.tar, sample 00000001 .rows\.json row 1"):
        table[1]


def test_the_frame_that_was_used_last_stays(tmp_path: Path) -> None:
    """With room for two, the one goes that was not used for longest."""
    make_dataset(tmp_path, [400], compression="zstd:1", lengths=[2000] * 400)
    shard = ShardTable(tmp_path).reader.open(0).shard
    cache = FrameCache(int(2.5 * len(shard.frame(0))))
    for frame in (0, 1, 0, 2):
        cache.get(shard, 0, frame)
    assert [frame for _, frame in cache._frames] == [0, 2]


def test_bytes_that_change_after_they_were_read(tmp_path: Path) -> None:
    """recheck="always" compares every time; "first", as documented, does not."""
    make_dataset(tmp_path, [3])
    path = tmp_path / "shard-00000.tar"
    tables = [ShardTable(tmp_path, recheck=recheck) for recheck in ("first", "always")]
    loader = ShardLoader(tmp_path, 3, recheck="always", prefetch=0)
    list(loader)
    for table in tables:
        assert table[1]["input_ids"].tolist() == ids_of(1).tolist()
    offset = int(tables[0].reader.open(0).shard.index["offset"][1]) + TOKENS_START
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 4]))
    assert tables[0][1]["input_ids"].tolist() != ids_of(1).tolist()
    for read in (lambda: tables[1][1], lambda: list(loader)):
        with pytest.raises(CorruptShard, match="sample 00000001"):
            read()
    assert tables[1][0]["input_ids"].tolist() == ids_of(0).tolist()


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_a_shard_that_is_cut_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    """It is named where it is looked up, ten milliseconds after the last look (here: at once),
    instead of SIGBUS where it is read."""
    monkeypatch.setattr("shardkit.loader.open_shards.LOOK_AGAIN_S", 0.0)
    make_dataset(tmp_path, [30], compression=compression)
    table = ShardTable(tmp_path)
    assert table[29]["input_ids"].tolist() == ids_of(29).tolist()
    (path,) = tmp_path.glob("shard-*")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CorruptShard, match="was cut while it was read"):
        _ = table[29]


def test_a_shard_that_is_cut_after_it_was_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named before the next batch, a second after the last look (here: at once). Read
    without a look, it would end the process: a child reads it."""
    monkeypatch.setattr("shardkit.loader.reader.LOOK_AGAIN_S", 0.0)
    make_dataset(tmp_path, [4000], lengths=[40] * 4000)
    loader = ShardLoader(tmp_path, 2, shuffle="none", prefetch=0)
    child = os.fork()
    if not child:
        batches = iter(loader)
        for _ in range(30):
            next(batches)  # blocks have 1, 4, 16, 64 ... batches: this is inside of one
        (path,) = tmp_path.glob("shard-*")
        os.truncate(path, 4096)
        try:
            list(batches)
        except CorruptShard as err:
            os._exit(0 if "was cut while it was read" in str(err) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_dataset_that_is_replaced_is_not_to_be_repaired(tmp_path: Path) -> None:
    """Another one under the same path, or none, is told as that."""
    path = tmp_path / "set"
    make_dataset(path, [5, 5], lengths=[9] * 10)
    tables = [ShardTable(path) for _ in range(3)]
    loader = ShardLoader(path, 2)
    assert len(tables[0][0]["input_ids"]) == 9
    shutil.rmtree(path)
    make_dataset(path, [5, 5], lengths=[8] * 10, name="other.json")
    assert len(tables[0][1]["input_ids"]) == 9  # mapped: the old one to the end of the shard
    for read in (lambda: tables[1][7], lambda: list(loader)):
        with pytest.raises(IdentityMismatch, match=r"(?s)replaced.*Start the run anew"):
            read()
    shutil.rmtree(path)
    with pytest.raises(MissingShard, match="not there any more"):
        _ = tables[2][0]
    make_dataset(path, [5, 5], lengths=[9] * 10)
    (path / "shard-00001.tar").unlink()
    with pytest.raises(MissingShard, match="repair"):
        _ = tables[2][7]


def test_files_that_may_not_be_read_are_named(tmp_path: Path) -> None:
    """The manifest, or a shard, is a StorageError with its path."""
    make_dataset(tmp_path, [5])
    table = ShardTable(tmp_path)
    (shard,) = tmp_path.glob("shard-*")
    shard.unlink()
    shard.symlink_to(shard.name)  # as root, rights stop nobody
    with pytest.raises(StorageError, match=f"{shard.name}.*cannot be read"):
        _ = table[0]
    manifest = tmp_path / "manifest.json"
    manifest.unlink()
    manifest.symlink_to("manifest.json")
    with pytest.raises(StorageError, match=r"manifest\.json.*cannot be read"):
        ShardTable(tmp_path)


def firsts(batches: Any) -> list[list[int]]:
    """The samples of each batch."""
    return [numbers(batch) for batch in batches]


@pytest.mark.parametrize(("n_workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_set_epoch_reaches_the_workers(dataset: Path, n_workers: int, persistent: bool) -> None:
    """Also those that live on from one epoch to the next; copies have an epoch of their own."""
    samples = ShardDataset(dataset, seed=1, rank=0, world_size=1)
    for one in (samples, copy.copy(samples), copy.deepcopy(samples)):
        loader = DataLoader(
            one,
            batch_size=5,
            num_workers=n_workers,
            persistent_workers=persistent,
            collate_fn=one.collate,
        )
        epochs = []
        for epoch in range(3):
            one.set_epoch(epoch)
            epochs.append(firsts(loader))
        assert all(epochs.count(epoch) == 1 for epoch in epochs)
        one.set_epoch(1)
        assert firsts(loader) == epochs[1]
        if n_workers:
            break


@pytest.mark.parametrize(("n_workers", "persistent"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("n_done", [0, 4, 24, 25])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_under_a_stateful_data_loader(
    dataset: Path, n_workers: int, persistent: bool, n_done: int
) -> None:
    """Saved in any epoch, a new process goes on there; its dataset is told nothing."""

    def loader_of() -> tuple[ShardDataset, Any]:
        samples = ShardDataset(dataset, seed=1, rank=0, world_size=1, drop_last=False)
        options: Any = {"batch_size": 5, "num_workers": n_workers, "persistent_workers": persistent}
        return samples, StatefulDataLoader(samples, collate_fn=samples.collate, **options)

    samples, loader = loader_of()
    samples.set_epoch(2)
    whole = firsts(loader)
    batches = iter(loader)
    for _ in range(n_done):
        next(batches)
    state = loader.state_dict()
    rest = firsts(batches)
    assert rest == whole[n_done:]

    again, second = loader_of()
    second.load_state_dict(state)
    assert firsts(second) == rest
    assert again.epoch == 2
    assert firsts(second) == whole
    again.set_epoch(1)
    assert sorted(number for batch in firsts(second) for number in batch) == list(range(TOTAL))


def test_an_iterator_that_has_not_begun_takes_a_state(dataset: Path) -> None:
    """Frameworks call iter() first and load the state then; its first sample is the state's."""

    def samples() -> ShardDataset:
        return ShardDataset(dataset, seed=1, rank=0, world_size=1)

    whole = [sample["input_ids"].tolist() for sample in samples()]
    begun = iter(first := samples())
    for _ in range(4):
        next(begun)
    waiting = iter(other := samples())
    other.load_state_dict(first.state_dict())
    assert [sample["input_ids"].tolist() for sample in waiting] == whole[4:]


def test_a_state_of_other_shares_is_refused(dataset: Path, tmp_path: Path) -> None:
    """Of other ranks, workers, data or order; and a loader's."""
    state = ShardDataset(dataset, rank=0, world_size=2).state_dict()
    make_dataset(tmp_path, [5])
    others = {
        "n_shares": ShardDataset(dataset, rank=0, world_size=3),
        "seed": ShardDataset(dataset, rank=0, world_size=2, seed=2),
        "fingerprint": ShardDataset(tmp_path, rank=0, world_size=2),
    }
    for word, other in others.items():
        with pytest.raises(StateMismatch, match=word):
            other.load_state_dict(state)
    with pytest.raises(StateMismatch, match="not the state of a ShardDataset"):
        ShardDataset(dataset).load_state_dict(ShardLoader(dataset, 2).state_dict())
    with pytest.raises(StateMismatch, match="loader"):
        ShardLoader(dataset, 2).load_state_dict(state)


def test_an_epoch_without_samples_is_told(tmp_path: Path) -> None:
    """Fewer samples than ranks, or a mixture smaller than a block: nothing comes, and it is said
    so."""
    make_dataset(tmp_path, [5])
    with pytest.warns(UserWarning, match=r"5 samples for 8 ranks \(drop_last=False"):
        assert not list(ShardDataset(tmp_path, rank=0, world_size=8))
    with pytest.warns(UserWarning, match="0 samples for 1 ranks .*ShardLoader"):
        assert not list(ShardMixture({tmp_path: 1.0}, rank=0, world_size=1))
