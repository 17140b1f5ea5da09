"""The names that users may rely on are there, typed and documented."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import shardkit
from shardkit import errors

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "Manifest",
    "ShardDataset",
    "ShardLoader",
    "ShardMixture",
    "ShardTable",
    "ShardkitError",
    "__version__",
    "load_manifest",
    "pack",
    "verify",
]


def test_the_public_names() -> None:
    """Exactly these, in order: a name more or less is a decision, not an accident."""
    assert shardkit.__all__ == NAMES == sorted(NAMES)
    assert dir(shardkit) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_documented(name: str) -> None:
    """It can be imported, says what it is, and is in the reference."""
    value = getattr(shardkit, name)
    if name == "__version__":
        assert value.count(".") >= 1
        return
    assert inspect.getdoc(value)
    page = ROOT / "docs/reference/api.md"
    if page.exists() and name != "ShardkitError":
        assert f"## shardkit.{name}\n" in page.read_text()


def test_errors_are_documented() -> None:
    """Every error class is in the reference and in the tree at the top of its module."""
    page = ROOT / "docs/reference/errors.md"
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.ShardkitError):
            assert name in (errors.__doc__ or "")
            assert not page.exists() or name in page.read_text()


def test_an_unknown_name_is_an_attribute_error() -> None:
    """`hasattr` and `from shardkit import ...` behave as in any module."""
    assert not hasattr(shardkit, "Loader")
    with pytest.raises(AttributeError, match="'Loader'"):
        _ = shardkit.Loader
