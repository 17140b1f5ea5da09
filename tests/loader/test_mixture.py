"""ShardMixture: shares in every global batch, exact resume, and refusal of unlike members."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import PLACEHOLDER, make_dataset, make_recipe
from torch.utils.data import DataLoader

from shardkit.dataset import open_dataset
from shardkit.errors import IdentityMismatch, MissingShard, StateMismatch, UsageError
from shardkit.loader import ShardLoader, ShardMixture
from shardkit.order.arrangement import Arrangement
from shardkit.order.mixture import MixtureOrder
from shardkit.report import Mixture, Topology, trace_batch

Members = dict[Path, float]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """Three datasets of 90, 40 and 7 samples with weights 5, 3 and 2."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, sizes in (("a", [50, 40]), ("b", [13, 13, 14]), ("c", [7])):
        make_dataset(folder / name, sizes, name=f"{name}.json")
    return {folder / "a": 5, folder / "b": 3, folder / "c": 2}


def loaders(
    members: Members, world_size: int, batch_size: int, until: Any = "endless", **options: Any
) -> list[ShardLoader]:
    """The loaders of all ranks."""
    return [
        ShardLoader(
            ShardMixture(members, until=until, rank=rank, world_size=world_size, **options),
            batch_size,
            sample_keys=True,
            prefetch=0,
        )
        for rank in range(world_size)
    ]


def steps(loaders: list[ShardLoader]) -> Any:
    """The keys of each global batch."""
    for batches in zip(*loaders, strict=True):
        yield [key for batch in batches for key in batch["keys"]]


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 10), (2, 3), (4, 4)])
def test_shares_hold_in_every_global_batch(
    members: Members, world_size: int, batch_size: int
) -> None:
    """Each member has its share of each global batch, rounded down or up."""
    total = world_size * batch_size
    for keys in islice(steps(loaders(members, world_size, batch_size)), 40):
        counts = Counter(key.split("/")[0] for key in keys)
        for i, weight in enumerate(members.values()):
            share = weight * total / 10
            assert counts[str(i)] in (math.floor(share), math.ceil(share))


def test_each_member_goes_through_its_own_epochs(members: Members) -> None:
    """A member's samples come again only when all of them came."""
    seen: Counter[str] = Counter()
    for keys in islice(steps(loaders(members, 2, 5)), 60):
        seen.update(keys)
    for i, size in enumerate((90, 40, 7)):
        counts = [n for key, n in seen.items() if key.startswith(f"{i}/")]
        assert len(counts) == size
        assert max(counts) - min(counts) <= 1


def test_the_end_of_an_epoch(members: Members) -> None:
    """`first` repeats nothing; `all` has seen everything; `endless` has no length."""
    first = loaders(members, 1, 10, "first")[0]
    counts = Counter(key for keys in steps([first]) for key in keys)
    assert max(counts.values()) == 1
    assert len(first) == 3  # 2 of 7 samples a batch
    whole = loaders(members, 1, 10, "all")[0]
    counts = Counter(key for keys in steps([whole]) for key in keys)
    assert len(counts) == 137
    endless = loaders(members, 1, 10)[0]
    with pytest.raises(TypeError, match="endless"):
        len(endless)
    assert endless.n_remaining is None


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_elastic_resume(members: Members, data: st.DataObject) -> None:
    """Cut at random steps, other ranks and micro-batch: the global batches are the same."""
    until = data.draw(st.sampled_from(["first", "all", "endless"]))
    topologies = st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1)])
    first = data.draw(topologies)

    def run(worlds: list[ShardLoader]) -> Any:
        while True:
            yield from steps(worlds)

    expected = list(islice(run(loaders(members, *first, until)), 25))
    found: list[list[str]] = []
    worlds = loaders(members, *first, until)
    while len(found) < 25:
        n = min(25 - len(found), data.draw(st.integers(1, 15)))
        found += islice(run(worlds), n)
        state = worlds[0].state_dict()
        worlds = loaders(members, *data.draw(topologies), until)
        for loader in worlds:
            loader.load_state_dict(state)

    assert found == expected


def test_a_state_of_other_weights_is_refused(members: Members) -> None:
    """Weights decide the order, so they are in the fingerprint."""
    state = loaders(members, 1, 4)[0].state_dict()
    other = loaders(dict.fromkeys(members, 1.0), 1, 4)[0]
    with pytest.raises(StateMismatch, match="fingerprint"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"max_length": 32}, "max_length"),
        ({"template": {"name": "x", "text": "", "sha256": "1" * 64}}, "template"),
        ({"tokenizer": {**make_recipe()["tokenizer"], "vocab_size": 5}}, "vocabulary size"),
    ],
)
def test_unlike_members_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    """Another tokenizer, template or max_length: the error names it and both datasets."""
    make_dataset(tmp_path / "a", [5])
    make_dataset(tmp_path / "b", [5], recipe=make_recipe(**changes))
    with pytest.raises(IdentityMismatch, match=word) as caught:
        ShardMixture({tmp_path / "a": 1, tmp_path / "b": 1})
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)


def test_packed_and_unpacked_do_not_mix(tmp_path: Path) -> None:
    """One batch cannot hold both."""
    make_dataset(tmp_path / "a", [5])
    make_dataset(tmp_path / "b", [5], packed=True)
    with pytest.raises(IdentityMismatch, match="packing"):
        ShardMixture({tmp_path / "a": 1, tmp_path / "b": 1})


def test_wrong_options_are_refused(members: Members) -> None:
    """No members, a weight of 0, an unknown end, lanes."""
    for call in (
        lambda: ShardMixture({}),
        lambda: ShardMixture(dict.fromkeys(members, 0.0)),
        lambda: ShardMixture(members, until="never"),  # type: ignore[arg-type]
        lambda: len(ShardLoader(ShardMixture(members), 2, lanes=2)),
    ):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize("names", [("text", "images"), ("images", "text")])
def test_images_are_expanded_whichever_member_comes_first(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    """A text member says nothing of placeholders; the number of tokens is checked all the same."""
    make_dataset(tmp_path / "text", [6])
    make_dataset(tmp_path / "images", [6], n_images=dict.fromkeys(range(6), 1))
    members = {tmp_path / name: 1.0 for name in names}
    options: Any = {"image_token_id": 39_999, "rank": 0, "world_size": 1}
    mixture = ShardMixture(members, expand_image_tokens=4, **options)
    ids = [batch["input_ids"].flatten().tolist() for batch in ShardLoader(mixture, 4)]
    assert sum(row.count(39_999) for row in ids) == 4 * 6
    assert not any(PLACEHOLDER in row for row in ids)
    with pytest.raises(IdentityMismatch, match="expand_image_tokens=9"):
        ShardMixture(members, expand_image_tokens=9, **options)


def test_unlike_placeholders_behind_a_text_member_are_refused(tmp_path: Path) -> None:
    """Every two members with images are compared, not only with the first member."""
    make_dataset(tmp_path / "text", [3])
    for name, token in (("a", PLACEHOLDER), ("b", -7)):
        recipe = make_recipe(images=True)
        recipe["images"]["image_token"] = token
        make_dataset(tmp_path / name, [3], n_images={0: 1}, recipe=recipe)
    with pytest.raises(IdentityMismatch, match="image_token"):
        ShardMixture({tmp_path / name: 1.0 for name in ("text", "a", "b")})


def test_members_of_a_mixture_are_remembered_by_threads(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may clear what is remembered between the store and the return."""
    order = ShardMixture(members, until="endless").order(Arrangement(chunk=10), 0)
    assert isinstance(order, MixtureOrder)

    class Cleared(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    object.__setattr__(order, "_epochs", Cleared())
    assert len(order.locate(np.arange(50, dtype=np.uint64))[0]) == 50


def test_a_missing_shard_of_any_member_is_refused_at_the_start(tmp_path: Path) -> None:
    """Before the first batch, by name."""
    make_dataset(tmp_path / "a", [5])
    make_dataset(tmp_path / "b", [5, 5])
    (tmp_path / "b" / "shard-00001.tar").unlink()
    with pytest.raises(MissingShard, match="shard-00001"):
        next(iter(ShardLoader(ShardMixture({tmp_path / "a": 9, tmp_path / "b": 1}), 2)))


def test_under_a_plain_data_loader(members: Members) -> None:
    """Ranks and workers read disjoint samples of the mixture."""
    seen: list[tuple[int, ...]] = []
    counts = set()
    for rank in range(2):
        mixture = ShardMixture(members, rank=rank, world_size=2, until="all")
        loader = DataLoader(mixture, batch_size=4, num_workers=2, collate_fn=mixture.collate)
        rows = [
            tuple(ids[:length].tolist())
            for batch in loader
            for ids, length in zip(
                batch["input_ids"], batch["attention_mask"].sum(dim=1), strict=True
            )
        ]
        counts.add((len(rows), len(mixture)))
        seen += rows
    assert len(counts) == 1
    assert len({*seen}) == 90  # the members hold the same samples under their own names


def test_one_member_that_wants_windows_decides(tmp_path: Path) -> None:
    """A compressed member behind a plain one is not read all over: a whole frame for each row.
    The trace knows."""
    make_dataset(tmp_path / "plain", [60])
    make_dataset(tmp_path / "zstd", [60], compression="zstd:1")
    members = [tmp_path / "plain", tmp_path / "zstd"]
    mixture = ShardMixture(dict.fromkeys(members, 1.0), rank=0, world_size=1)
    loader = ShardLoader(mixture, 8, sample_keys=True)
    assert loader.arrangement.shuffle == "window"
    data = Mixture([open_dataset(path) for path in members], [1.0, 1.0])
    found = trace_batch(data, Topology(world_size=1, batch_size=8), step=0, rank=0)
    keys = [f"{one.member}/{one.shard}/{one.key}" for one in found]
    assert keys == next(iter(loader))["keys"]
