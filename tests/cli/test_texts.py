"""What commands say: it fits 80 columns, counts in the right number, and names no idle figures."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest
from records import alpaca_rows, pack_small, write_json, write_llava
from shardkit_cli import render
from shardkit_cli.main import COMMANDS, main, make_parser
from shardkit_cli.pack_cmd import Watch
from shardkit_cli.pack_summary import show_end

from shardkit.builder import Progress


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_terminal(command: str | None) -> None:
    """No line of any --help is wider than 80 columns."""
    lines = make_parser(command).format_help().splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_counts_agree_with_their_nouns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1 shard, 0 shards, 1,234 shards; verify and merge speak so."""
    found = [render.count(n, "shard") for n in (0, 1, 2, 1234)]
    assert found == ["0 shards", "1 shard", "2 shards", "1,234 shards"]
    pack_small(write_json(tmp_path / "rows.json", alpaca_rows(1)), tmp_path / "out")
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "1 shard, 1 sample, " in capsys.readouterr().out
    shard = tmp_path / "out" / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert main(["verify", str(tmp_path / "out")]) == 1
    assert "in 1 shard\n" in capsys.readouterr().out


def test_bytes_a_token_only_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures are not tokens: with them the figure is left out."""
    text = pack_small(write_json(tmp_path / "rows.json", alpaca_rows(3)), tmp_path / "text")
    show_end(text, "text", took=1.0, rate=None)
    n_bytes = sum(shard.n_bytes for shard in text.shards)
    shown = capsys.readouterr().out
    assert f"{n_bytes / text.n_tokens:.2f} bytes a token" in shown
    assert "a second" not in shown
    pictures = pack_small(
        write_llava(tmp_path, 4), tmp_path / "images-out", image_root=tmp_path / "images"
    )
    show_end(pictures, "pictures", took=9.0, rate=1234.4)
    shown = capsys.readouterr().out
    assert "bytes a token" not in shown
    assert "9.0 s; 1,234 rows a second" in shown


def test_the_rate_is_that_of_building(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scanning, start-up, and rows of an earlier run do not count; too short a time has no rate."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with render.meter("packing", argparse.Namespace(quiet=True, log_json=False)) as meter:
        watch = Watch(meter)
        watch.show(Progress("scan", 5000, 0))
        now = 160.0
        watch.show(Progress("build", 800, 2000))
        assert watch.rate is None
        now = 161.0
        watch.show(Progress("build", 1200, 2000))
        assert watch.rate is None
        now = 164.0
        watch.show(Progress("build", 2000, 2000))
        now = 190.0
        watch.show(Progress("commit", 0, 1))
    assert watch.rate == 300.0


def test_a_row_without_labels_says_why(tmp_path: Path) -> None:
    """rejects.jsonl: how long the row is, and whether truncation took the answer."""
    rows = [*alpaca_rows(1), {"instruction": "long " * 300, "output": "short"}]
    pack_small(write_json(tmp_path / "rows.json", rows), tmp_path / "out")
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    reject = json.loads(line)
    assert reject["reason"] == "no_supervised_tokens"
    n_tokens = int(reject["detail"].split()[0])
    assert n_tokens > 300
    assert reject["detail"].startswith(f"{n_tokens} tokens, all ")
    assert reject["detail"].endswith(" of answers beyond max length 64")
