"""Options of the loaders: each one once, and a wrong value never gets as far as opening a file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import make_dataset

from shardkit import ShardDataset, ShardLoader, ShardMixture, ShardTable
from shardkit.errors import ShardkitError, UsageError
from shardkit.loader.options import DATASET_PARTS, Access, DatasetOptions, Expected, TableOptions


def is_int(low: int | None, high: int | None = None) -> Callable[[Any], bool]:
    """Whole numbers of a range; neither True nor 1.0 is one."""
    return lambda value: (
        type(value) is int and (low is None or value >= low) and (high is None or value <= high)
    )


def one_of(*words: object) -> Callable[[Any], bool]:
    """One of some values, of the same type."""
    return lambda value: any(type(value) is type(word) and value == word for word in words)


def or_none(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """None too."""
    return lambda value: value is None or test(value)


ANY: Callable[[Any], bool] = lambda value: True  # noqa: E731
PATH: Callable[[Any], bool] = lambda value: (  # noqa: E731
    isinstance(value, str | Path) and str(value) != "" and "\0" not in str(value)
)
MAPPING: Callable[[Any], bool] = lambda value: isinstance(value, dict)  # noqa: E731
TABLE = {
    "tokenizer": ANY,
    "template": ANY,
    "processor": ANY,
    "max_length": or_none(is_int(1)),
    "images": or_none(MAPPING),
    "storage_options": or_none(MAPPING),
    "cache_dir": or_none(PATH),
    "cache_limit": or_none(is_int(1)),
    "recheck": one_of("first", "always"),
}
DATASET = TABLE | {
    "fetch_ahead": or_none(is_int(1)),
    "shuffle": one_of(True, False, "full", "window", "none"),
    "seed": is_int(0, 2**64 - 1),
    "epoch": is_int(0, 2**63 - 1),
    "window": is_int(1),
    "drop_last": one_of(True, False),
    "rank": or_none(is_int(0)),
    "world_size": or_none(is_int(1)),
    "group": ANY,
    "image_transform": ANY,
    "expand_image_tokens": or_none(is_int(1)),
    "image_token_id": or_none(is_int(None)),
    "image_pad": one_of("none", "always-one"),
    "image_layout": one_of("flat", "row"),
    "image_threads": is_int(0),
    "fast_pixels": one_of(True, False),
    "pad_token_id": or_none(is_int(0)),
    "pad_to_multiple_of": or_none(is_int(1)),
    "loss_weights": or_none(one_of("token", "sample", "square")),
}
LOADER = DATASET | {
    "batch_size": is_int(1),
    "num_workers": is_int(0),
    "lanes": or_none(is_int(1)),
    "prefetch": or_none(is_int(0)),
    "pin_memory": or_none(one_of(True, False)),
    "sample_keys": one_of(True, False),
    "worker_context": or_none(one_of("fork", "spawn", "forkserver")),
    "group_by_length": one_of(True, False),
    "balance": or_none(one_of("cost")),
    "balance_scope": one_of("auto", "lanes", "group", "step"),
    "cost_model": ANY,
    "pair_layout": or_none(one_of("apart", "stacked")),
    "stats": one_of(True, False),
}
MIXTURE = DATASET | {"until": one_of("first", "all", "endless")}
JUNK: list[Any] = [
    0,
    -1,
    1,
    2**64,
    1.0,
    0.5,
    float("nan"),
    True,
    None,
    "",
    "ful",
    "Full",
    "always",
    b"first",
]
JUNK += ["\0", [], [1], {}, (), object(), "1"]
VALUES = st.one_of(st.sampled_from(JUNK), st.integers(), st.floats(), st.text(max_size=8))


def make(kind: str, path: Path, options: dict[str, Any]) -> object:
    """One of the four, over a dataset whose manifest is a pipe: reading it would hang."""
    if kind == "loader":
        return ShardLoader(path, **{"batch_size": 4} | options)
    if kind == "mixture":
        return ShardMixture({path: 1.0, path / "b": 2.0}, **options)
    return {"dataset": ShardDataset, "table": ShardTable}[kind](path, **options)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose manifest.json is a pipe that nobody writes."""
    folder = tmp_path_factory.mktemp("pipe")
    os.mkfifo(folder / "manifest.json")
    return folder


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize(
    ("kind", "known"),
    [("table", TABLE), ("dataset", DATASET), ("loader", LOADER), ("mixture", MIXTURE)],
)
def test_wrong_values_are_refused_before_anything_is_opened(
    pipe: Path, kind: str, known: dict[str, Callable[[Any], bool]], data: st.DataObject
) -> None:
    """A value is right, and the dataset is looked for; or it is a UsageError that names it."""
    name = data.draw(st.sampled_from(sorted(known)))
    value = data.draw(VALUES)
    with pytest.raises(ShardkitError) as refused:
        make(kind, pipe, {name: value})
    if known[name](value):
        half = name in ("rank", "world_size", "group", "balance_scope", "cost_model")
        assert (half and value is not None) or "not a regular file" in refused.value.message
    else:
        assert isinstance(refused.value, UsageError)
        assert name in refused.value.message
        assert refused.value.expected
        assert refused.value.found is not None


@pytest.mark.parametrize("kind", ["table", "dataset", "loader", "mixture"])
def test_a_wrong_name_is_refused_with_the_nearest_right_one(pipe: Path, kind: str) -> None:
    """Also a name of the loader that the dataset does not know."""
    with pytest.raises(UsageError, match=r"(?s)'tokeniser'.*Did you mean tokenizer"):
        make(kind, pipe, {"tokeniser": 1})
    if kind == "loader":
        with pytest.raises(UsageError, match=r"(?s)'num_worker'.*Did you mean num_workers"):
            make(kind, pipe, {"num_worker": 1})
    with pytest.raises(UsageError, match="'options'"):
        make(kind, pipe, {"options": {}})


def test_a_word_is_refused_with_the_nearest_right_one(pipe: Path) -> None:
    """And with all that are right."""
    with pytest.raises(UsageError, match=r"(?s)none or always-one.*Did you mean always-one"):
        ShardDataset(pipe, image_pad="always_one")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "members", [{}, None, [], {"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": "x"}, {"": 1}, {3: 1}]
)
def test_wrong_members_of_a_mixture(members: Any) -> None:
    """No dataset, or a weight that is none."""
    with pytest.raises(UsageError, match=r"weight|path|members"):
        ShardMixture(members)


@pytest.mark.parametrize("path", [None, 3, "", b"x", "a\0b"])
@pytest.mark.parametrize("cls", [ShardDataset, ShardTable, lambda path: ShardLoader(path, 2)])
def test_a_path_that_is_none(cls: Callable[[Any], object], path: object) -> None:
    """It is refused by name."""
    with pytest.raises(UsageError, match=r"path|dataset"):
        cls(path)


def test_each_option_stands_once() -> None:
    """The names for type checkers are those of the structs, with the same types."""
    fields: dict[str, Any] = {}
    for part in DATASET_PARTS:
        hints = get_type_hints(part)
        assert not fields.keys() & hints.keys()
        fields |= hints
    assert get_type_hints(DatasetOptions) == fields
    assert get_type_hints(TableOptions) == get_type_hints(Expected) | get_type_hints(Access)
    own = [*inspect.signature(ShardLoader.__init__).parameters][2:-1]
    assert not fields.keys() & {*own}
    assert LOADER.keys() == fields.keys() | {*own}


def test_padding_to_no_multiple(tmp_path: Path) -> None:
    """None, as transformers has it, is off."""
    make_dataset(tmp_path, [7])
    one, other = (
        [batch["input_ids"].shape for batch in ShardLoader(tmp_path, 2, pad_to_multiple_of=n)]
        for n in (None, 1)
    )
    assert one == other
