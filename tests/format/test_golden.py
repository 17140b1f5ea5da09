"""Datasets of every version of the format that was out are read for ever, to the same end."""

from __future__ import annotations

import hashlib
import json
import re
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


def rules_of(page: Path) -> str:
    """The digest of what a page of the format demands: its sections 2 to 13, but for breaks."""
    found = re.search(r"^## 2\. .*?(?=^## 14\. )", page.read_text(), re.M | re.S)
    assert found, f"{page} has no sections 2 to 13"
    return hashlib.sha256(" ".join(found[0].split()).encode()).hexdigest()


def test_the_page_of_a_version_stays_as_it_is() -> None:
    """Each version's page is kept. Where only its words were mended, write the new digest; where
    the format changed, raise the version and keep the old page (tests/data/golden/README.md)."""
    pages = json.loads((GOLDEN / "pages.json").read_text())
    assert sorted(pages) == sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
    docs = GOLDEN.parents[2] / "docs"
    for version, digest in pages.items():
        page = docs / ("format.md" if version == FORMAT_VERSION else f"format-{version}.md")
        assert page.read_text().startswith(f"# The shardkit format, version {version}\n")
        assert rules_of(page) == digest, f"{page.name}: its rules changed"


def test_this_version_has_golden_datasets() -> None:
    """A new version of the format comes with its own."""
    names = {path.name for path in DATASETS if path.parent.name == FORMAT_VERSION}
    assert names >= {"packed", "chats-zstd", "pictures", "preference"}
