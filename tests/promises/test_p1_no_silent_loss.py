"""P1: rows read = rows kept + rows rejected, by reason, and every rejected row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import alpaca_rows, pack_small, write_json

from shardkit import verify
from shardkit.errors import BadInput, TooManyRejects
from shardkit.format.shard import Shard

GOOD = {"instruction": "a b", "input": "", "output": "c d"}
ROWS: dict[str, object] = {
    "good": GOOD,
    "long": {"instruction": "word " * 200, "input": "", "output": "never reached"},
    "cut": {"instruction": "a", "input": "", "output": "word " * 200},
    "no_output": {**GOOD, "output": "<nooutput>"},
    "missing": {"instruction": "a"},
    "null": {**GOOD, "output": None},
    "list": [1, 2],
    "string": "x",
    "empty": {},
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(sorted(ROWS)), min_size=1, max_size=40),
    packing=st.sampled_from(["none", "concat", "best-fit"]),
    shuffle_seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_every_row_is_kept_once_or_rejected_once(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[str],
    packing: str,
    shuffle_seed: int | None,
) -> None:
    """Whatever the rows are, the ledger adds up, and verify proves it row by row."""
    folder = tmp_path_factory.mktemp("p1")
    rows = [GOOD, *(ROWS[kind] for kind in kinds)]
    source = write_json(folder / "rows.json", rows)
    manifest = pack_small(
        source,
        folder / "out",
        packing=packing,
        shuffle_seed=shuffle_seed,
        part_rows=7,
        source_format="alpaca",
        max_rejects=None,
    )
    ledger = manifest.sources[0]
    assert ledger.n_rows == len(rows) == ledger.n_kept + sum(ledger.rejected.values())
    listed = [json.loads(s) for s in (folder / "out/rejects.jsonl").read_text().splitlines()]
    n_bad = sum(kind not in ("good", "cut") for kind in kinds)
    assert sorted(line["row"] for line in listed) == [
        i + 1 for i, kind in enumerate(kinds) if kind not in ("good", "cut")
    ]
    assert len(listed) == n_bad
    assert all(line["source"] == "rows.json" and line["reason"] for line in listed)
    assert verify(folder / "out").findings == []


def test_rows_without_a_label_are_rejected_not_trained_on(tmp_path: Path) -> None:
    """A prompt that fills max_length leaves nothing to learn: rejected with that reason."""
    source = write_json(tmp_path / "rows.json", [GOOD, ROWS["long"]])
    manifest = pack_small(source, tmp_path / "out")
    assert manifest.sources[0].rejected == {"no_supervised_tokens": 1}


def test_truncation_is_counted_where_it_happens(tmp_path: Path) -> None:
    """The ledger and the index say how many tokens each row lost."""
    source = write_json(tmp_path / "rows.json", [GOOD, ROWS["cut"]])
    manifest = pack_small(source, tmp_path / "out")
    shard = Shard.open(tmp_path / "out" / manifest.shards[0].name)
    assert shard.index["n_cut"][0] == 0
    assert shard.index["n_cut"][1] == manifest.sources[0].n_cut_tokens > 100
    assert manifest.sources[0].n_truncated == 1
    n_cut = manifest.sources[0].n_cut_tokens
    assert manifest.checks["truncated"] == {
        "n": 1,
        "examples": [["rows.json", 1]],
        "n_tokens": n_cut,
        "most_tokens": n_cut,
    }


def test_on_error_fail_names_file_and_row(tmp_path: Path) -> None:
    """With on_error=fail the first bad row stops the build, by name, and nothing is visible."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(30, n_bad=1))
    with pytest.raises(BadInput, match=r"rows\.json, row 29"):
        pack_small(source, tmp_path / "out", on_error="fail")
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("limit", "is_refused"), [(2, True), (3, False), (0.05, True), (0.2, False)]
)
def test_max_rejects(tmp_path: Path, limit: float, is_refused: bool) -> None:
    """A count or a share; what is refused lists its rows and can go on with a larger limit."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(30, n_bad=3))
    if is_refused:
        with pytest.raises(TooManyRejects, match="3 of 30: "):
            pack_small(source, tmp_path / "out", max_rejects=limit)
        assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 3
        assert not (tmp_path / "out/manifest.json").exists()
    assert pack_small(source, tmp_path / "out", max_rejects=4).sources[0].n_kept == 27


def test_no_row_at_all_is_an_error(tmp_path: Path) -> None:
    """A dataset of nothing is refused, and why is said."""
    source = write_json(tmp_path / "rows.json", [ROWS["no_output"]] * 3)
    with pytest.raises(BadInput, match="3 no_output"):
        pack_small(source, tmp_path / "out")
