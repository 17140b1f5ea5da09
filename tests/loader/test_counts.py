"""What a step counts, on all ranks: against the labels of the batches themselves."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from records import TOKENIZER, write_json
from servers import LOOPBACK, serving

from shardkit import ShardLoader, ShardMixture, pack
from shardkit.errors import ShardkitError, UsageError

KINDS = ("plain", "packed", "compressed")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows whose every token has a label, of most the first one too; several shards each."""
    folder = tmp_path_factory.mktemp("counts")
    rng = random.Random(0)
    rows = [
        {
            "input_ids": (ids := rng.choices(range(300, 900), k=rng.randrange(2, 60))),
            "labels": ids if i % 3 else [-100, *ids[1:]],
        }
        for i in range(90)
    ]
    source = write_json(folder / "rows.json", rows)
    options: dict[str, Any] = {"source_format": "tokenized", "shard_size": 20_000, "engine": "hf"}
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"packing": "best-fit"},
        {"compression": "zstd", "packing": "concat"},
    )
    for name, more in zip(KINDS, kinds, strict=True):
        pack(
            source,
            folder / name,
            tokenizer=TOKENIZER,
            max_length=64,
            **options,
            **more,
        )
    (folder / "other").symlink_to(folder / "plain")
    return {name: folder / name for name in KINDS}


def labels_of(batch: dict[str, Any]) -> int:
    return int((batch["labels"] != -100).sum())


def check(make: Any, n_ranks: int, accumulation: int, skip: int = 0) -> int:
    """Every rank says at every batch what all ranks' batches of its step hold; the steps."""
    ranks = [make(rank=rank, world_size=n_ranks) for rank in range(n_ranks)]
    for rank in ranks:
        rank.skip(skip)
    said: list[list[int]] = []
    counted: list[int] = []
    ends: list[bool] = []
    for batches in zip(*ranks, strict=True):
        said.append([rank.num_items_in_batch(accumulation=accumulation) for rank in ranks])
        counted.append(sum(map(labels_of, batches)))
        ends.append(ranks[-1].ends_step(accumulation=accumulation))
    n = len(counted)
    groups = [range(i, min(i + accumulation, n)) for i in range(0, n, accumulation)]
    for group in groups:
        wanted = sum(counted[i] for i in group)
        assert [said[i] for i in group] == [[wanted] * n_ranks] * len(group)
        assert [ends[i] for i in group] == [False] * (len(group) - 1) + [True]
    return len(groups)


OPTIONS: list[dict[str, Any]] = [
    {}, {"shuffle": False}, {"drop_last": False}, {"group_by_length": True},
    {"balance": "cost"}, {"balance": "cost", "balance_scope": "lanes"}, {"num_workers": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_count_is_that_of_the_batches(datasets: dict[str, Path], options: Any) -> None:
    """1, 2 and 4 ranks, accumulation 1 to 4, from the start and resumed, a short last step."""
    for kind in KINDS[: 1 if "num_workers" in options else None]:
        make = partial(ShardLoader, datasets[kind], 2, seed=3, **options)
        for n_ranks, accumulation, skip in ((1, 3, 0), (2, 1, 3), (2, 4, 1), (4, 2, 0)):
            if kind != "plain" and n_ranks == 4:
                continue
            assert check(make, n_ranks, accumulation, skip) > 0


def test_first_labels_are_not_counted(datasets: dict[str, Path]) -> None:
    """The index counts them apart: no token before them is to predict them."""
    loader = ShardLoader(datasets["plain"], 5, shuffle=False)
    batch = next(iter(loader))
    assert loader.num_items_in_batch() == labels_of(batch)
    stored = loader.dataset.members[0].index(0)[:5]
    assert stored["n_first"].tolist() == [0, 1, 1, 0, 1]
    assert int(stored["n_supervised"].sum()) == labels_of(batch) + 3


@pytest.mark.parametrize("until", ["first", "all", "endless"])
def test_mixtures(datasets: dict[str, Path], until: Any) -> None:
    """Members by weight; of an endless one the first steps."""

    def make(**ranks: int) -> ShardLoader:
        members = {datasets["plain"]: 0.7, datasets["plain"].parent / "other": 0.3}
        return ShardLoader(ShardMixture(members, until=until, **ranks), 3)  # type: ignore[arg-type]

    if until != "endless":
        assert check(make, 2, 3) > 2
        return
    ranks = [make(rank=rank, world_size=2) for rank in range(2)]
    seen = []
    for _, pair in zip(range(4), zip(*ranks, strict=True), strict=False):
        seen.append(sum(map(labels_of, pair)))
    said = [rank.num_items_in_batch(accumulation=2) for rank in ranks]
    assert said == [sum(seen[2:])] * 2


def test_a_peek_and_an_evaluation_change_nothing(datasets: dict[str, Path]) -> None:
    """What is said is of the loop's batch, also in the step of the epoch's last one."""
    plain = ShardLoader(datasets["plain"], 4, seed=1)
    wanted = [plain.num_items_in_batch() for _ in plain]
    loader = ShardLoader(datasets["plain"], 4, seed=1)
    found = []
    for _ in loader:
        next(iter(loader))
        view = loader.for_eval()
        assert [view.num_items_in_batch() for _ in view] != []
        found.append(loader.num_items_in_batch())
    assert found == wanted


def test_before_the_first_batch_it_is_refused(datasets: dict[str, Path]) -> None:
    """And a loader goes through pickle with what it read left behind."""
    loader = ShardLoader(datasets["plain"], 4)
    with pytest.raises(UsageError, match="no batch yet"):
        loader.num_items_in_batch()
    with pytest.raises(UsageError, match="accumulation"):
        loader.num_items_in_batch(accumulation=0)
    next(iter(loader))
    assert loader.num_items_in_batch() > 0
    again = pickle.loads(pickle.dumps(loader))
    with pytest.raises(UsageError, match="no batch yet"):
        again.ends_step()


class Ranged(SimpleHTTPRequestHandler):
    """A file server that knows ranges; what it sent, by file."""

    def __init__(self, sent: list[tuple[str, int]], *args: Any, **more: Any) -> None:
        self.sent = sent
        super().__init__(*args, **more)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        wanted = self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.sent.append((path.name, len(data)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def ranged(folder: Path) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    sent: list[tuple[str, int]] = []
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(Ranged, sent, directory=str(folder)))
    with serving(server) as port:
        yield f"http://{LOOPBACK}:{port}", sent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"balance": "cost"}], ids=str)
def test_of_remote_shards_only_the_indexes_are_read(
    datasets: dict[str, Path], kind: str, options: Any, tmp_path: Path
) -> None:
    """The counts are those of the local dataset, for the indexes' bytes and the files' ends."""
    if options:
        options = options | {"balance_scope": "lanes"}
    given: dict[str, Any] = {"seed": 2, "shuffle": "window", "rank": 0, "world_size": 2} | options
    local = ShardLoader(datasets[kind], 3, **given)
    wanted = [local.num_items_in_batch(accumulation=2) for _ in local]
    with ranged(datasets[kind]) as (url, sent):
        for _ in ShardLoader(url, 3, cache_dir=tmp_path, **given):
            pass  # its own shards are there now
        del sent[:]
        loader = ShardLoader(url, 3, cache_dir=tmp_path, **given)
        found = [loader.num_items_in_batch(accumulation=2) for _ in loader]
        read: dict[str, int] = {}
        for name, n_bytes in sent:
            read[name] = read.get(name, 0) + n_bytes
    assert found == wanted
    for entry in loader.dataset.members[0].manifest.shards if kind == "plain" else ():
        assert read[entry.name] <= 80 * entry.n_samples + 1024 + 2 * (8 << 10)


def test_a_damaged_remote_index_is_refused(datasets: dict[str, Path], tmp_path: Path) -> None:
    """The footer vouches for it, and the manifest for the footer."""
    shutil.copytree(datasets["plain"], tmp_path / "bad")
    shard = sorted((tmp_path / "bad").glob("*.tar"))[0]
    data = bytearray(shard.read_bytes())
    place = json.loads(bytes(data[-1536:-1024]))["index"][0]
    data[place + 300] ^= 1
    shard.write_bytes(data)
    dataset = ShardLoader(tmp_path / "bad", 2).dataset.members[0]
    with pytest.raises(ShardkitError, match="index does not match its hash"):
        dataset.index(0)


def weights_by_hand(batch: dict[str, Any], power: float) -> torch.Tensor:
    """XTuner V1's len2weight, document by document: 1 / n ** power of its labels."""
    labels = batch["labels"].flatten()
    found = torch.zeros(len(labels))
    width = batch["labels"].shape[1]
    borders = batch.get("cu_seqlens", torch.arange(0, len(labels) + 1, width)).tolist()
    for begin, end in pairwise(borders):
        counts = labels[begin:end] != -100
        n = int(counts.sum())
        if n:
            found[begin:end][counts] = 1 / n**power
    return found.reshape(batch["labels"].shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("how", "power"), [("token", 0.0), ("sample", 1.0), ("square", 0.5)])
def test_loss_weights(datasets: dict[str, Path], kind: str, how: Any, power: float) -> None:
    """Those of XTuner V1 for each document; models do not get them."""
    loader = ShardLoader(datasets[kind], 4, loss_weights=how, drop_last=False)
    for batch in loader:
        torch.testing.assert_close(batch["loss_weights"], weights_by_hand(batch, power))
        assert batch["loss_weights"].dtype == torch.float32
        assert "loss_weights" not in loader.model_inputs(batch)
    with pytest.raises(UsageError, match="loss_weights"):
        ShardLoader(datasets[kind], 4, loss_weights="rows")  # type: ignore[arg-type]


def test_no_weights_unless_asked(datasets: dict[str, Path]) -> None:
    """A batch is as it was."""
    assert "loss_weights" not in next(iter(ShardLoader(datasets["plain"], 4)))
