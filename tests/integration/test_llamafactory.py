"""Rows for LLaMA-Factory; its own training over them is benchmarks/llamafactory_run.py."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from records import alpaca_rows, pack_small, write_json, write_llava
from shardkit_cli.main import main

from shardkit import ShardTable
from shardkit.errors import UsageError
from shardkit.integrations.llamafactory import export_llamafactory


@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_the_columns_that_it_reads(tmp_path: Path, packing: str) -> None:
    """Ids and labels of every row; of a pack, numbered documents with positions of their own."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(12))
    pack_small(source, tmp_path / "data", packing=packing, max_length=96)
    words = ["export", str(tmp_path / "data"), "--to", "llamafactory", str(tmp_path / "out")]
    assert main(words) == 0
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    table = ShardTable(tmp_path / "data")
    assert len(rows) == len(table)
    for i, row in enumerate(rows):
        ids, labels = table[i]["input_ids"].tolist(), table[i]["labels"].tolist()
        n = len(ids)
        assert row["input_ids"][:n] == ids
        if packing == "none":
            assert set(row) == {"input_ids", "labels", "attention_mask"}
            assert (row["labels"], row["attention_mask"]) == (labels, [1] * n)
            continue
        positions = table[i]["position_ids"].tolist()
        numbers = [sum(p == 0 for p in positions[: k + 1]) for k in range(n)]
        rest = 104 - n  # the next multiple of eight above max_length
        assert row["position_ids"] == positions + [0] * rest
        assert row["attention_mask"] == numbers + [0] * rest
        assert row["labels"] == labels + [-100] * rest


def test_rows_without_a_limit(tmp_path: Path) -> None:
    """A dataset that was packed without --max-length is written too."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(4))
    pack_small(source, tmp_path / "data", max_length=None)
    assert export_llamafactory(tmp_path / "data", tmp_path / "out") == 4


def test_what_has_no_column_there(tmp_path: Path) -> None:
    """Pictures are refused, and nothing is written."""
    source = write_llava(tmp_path, 4)
    pack_small(source, tmp_path / "data", image_root=tmp_path / "images", image_tokens=4)
    with pytest.raises(UsageError, match="no column"):
        export_llamafactory(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()
