"""Errors advise, travel between processes, and can be built from one string."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from shardkit import errors
from shardkit.errors import CorruptShard, ShardkitError

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("shardkit/**/*.py"), *ROOT.glob("cli/*.py")])
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ShardkitError)
]
NAMES = {cls.__name__ for cls in CLASSES}


def calls_of_errors(path: Path) -> Iterator[ast.Call]:
    """Every place where one of our errors is built: raised at once, or returned to be raised."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in NAMES:
            yield node


def test_there_are_errors_to_look_at() -> None:
    """The sources are beside the tests, and the search below finds what it looks for."""
    if not FILES:
        pytest.skip("the sources are not beside the tests")
    assert sum(len(list(calls_of_errors(path))) for path in FILES) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_error_says_what_to_do(path: Path) -> None:
    """Whoever builds one of our errors gives `fix=`, and it is not empty."""
    for call in calls_of_errors(path):
        fixes = [word.value for word in call.keywords if word.arg == "fix"]
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        assert fixes, f"{where}: an error without advice"
        is_empty = isinstance(fixes[0], ast.Constant) and not fixes[0].value
        assert not is_empty, f"{where}: empty advice"
        assert call.args, f"{where}: an error that does not say what happened"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_error_is_raised_by_its_bare_class(path: Path) -> None:
    """`raise BadInput` without words does not exist, nor does `except:` without a kind."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise):
            assert getattr(node.exc, "id", None) not in NAMES, f"{path}:{node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}"


@pytest.mark.parametrize("cls", CLASSES)
def test_one_string_is_enough(cls: type[ShardkitError]) -> None:
    """torch rebuilds a worker's error as `type(error)(text)`."""
    assert str(cls("it broke")) == "it broke"
    assert isinstance(cls("it broke"), ShardkitError)
    assert cls.__doc__


@pytest.mark.parametrize("cls", CLASSES)
def test_fields_survive_pickling(cls: type[ShardkitError]) -> None:
    """The build pool sends errors whole."""
    error = cls("it broke", where="a.tar", expected="1", found="2", fix="Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert vars(again) == vars(error)
    assert str(again) == "a.tar: it broke (expected 1, found 2)\n  Mend it."


class Broken(Dataset[int]):
    """A dataset whose samples are all damaged."""

    def __init__(self, cls: type[ShardkitError]) -> None:
        self.cls = cls

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        raise self.cls("it broke", where=f"sample {i}", fix="Mend it.")


@pytest.mark.parametrize("cls", [ShardkitError, CorruptShard, errors.TooManyRejects])
def test_an_error_leaves_a_torch_worker_as_what_it_is(cls: type[ShardkitError]) -> None:
    """`except ShardkitError` catches it around a DataLoader with workers, with place and advice."""
    loader = DataLoader(Broken(cls), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(ShardkitError) as caught:
        list(loader)
    assert type(caught.value) is cls
    assert "sample 0: it broke" in str(caught.value)
    assert "Mend it." in str(caught.value)
