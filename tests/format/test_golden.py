"""Datasets of every version of the format that was out are read for ever, to the same end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden import facts_of

from shardkit import verify
from shardkit.format.layout import FORMAT_VERSION

GOLDEN = Path(__file__).resolve().parents[1] / "data/golden"
DATASETS = sorted(path.parent for path in GOLDEN.glob("*/*/manifest.json"))


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_golden_dataset_is_read_as_it_was(dataset: Path) -> None:
    """Identity, ledger, tokens, labels, segments, pictures, order: all as when it was made."""
    expected = json.loads(dataset.with_name(f"{dataset.name}.json").read_text())
    assert facts_of(dataset) == expected
    assert verify(dataset).findings == []


def test_this_version_has_golden_datasets() -> None:
    """A new version of the format comes with its own."""
    names = {path.name for path in DATASETS if path.parent.name == FORMAT_VERSION}
    assert names >= {"packed", "chats-zstd", "pictures", "preference"}
