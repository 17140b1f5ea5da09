"""Whatever a path or a file is: two lines that name it and an exit status, never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from records import TOKENIZER, alpaca_rows, pack_small, write_json
from shardkit_cli.main import main

from shardkit import verify


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_json(tmp_path / "a.json", alpaca_rows(60, n_bad=2))


PACK = ["--tokenizer", str(TOKENIZER), "--template", "qwen_chat"]


def said(words: Sequence[object], capsys: pytest.CaptureFixture[str], *, status: int = 1) -> str:
    """What the command prints on stderr when it ends with this status."""
    assert main(list(map(str, words))) == status
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("file/ds", "Not a directory"),
        ("z" * 300, "too long"),
        ("/proc/ds", "No such file"),
        ("loop/ds", "symbolic links"),
        ("file", "the output is a file"),
    ],
)
def test_an_output_that_cannot_be(
    source: Path, tmp_path: Path, out: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path, what the system says, and what to do."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    text = said(["pack", source, "--out", tmp_path / out, *PACK], capsys)
    assert says in text
    assert len(text.splitlines()) == 2


def test_manifests_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder, a pipe, a loop of links: every command that opens a dataset says so at once."""
    for name in ("folder", "pipe", "loop"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder/manifest.json").mkdir()
    os.mkfifo(tmp_path / "pipe/manifest.json")
    (tmp_path / "loop/manifest.json").symlink_to("manifest.json")
    for name in ("folder", "pipe", "loop"):
        for command in (["verify"], ["inspect"], ["append", "X", "a.json"], ["merge", "X", "X"]):
            words: list[object] = [tmp_path / name if word == "X" else word for word in command]
            if words == command:
                words = [*command, tmp_path / name]
            if command[0] == "merge":
                words += ["--out", tmp_path / "out"]
            assert name in said(words, capsys)


def test_an_input_whose_name_is_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named in a form that can be printed, alone or found in a folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "caf\udce9.json").write_text(json.dumps(alpaca_rows(3)))
    assert "UTF-8" in said(["pack", folder, "--out", tmp_path / "out", *PACK], capsys)
    assert not (tmp_path / "out").exists()


def test_verify_goes_on_after_what_it_cannot_read(source: Path, tmp_path: Path) -> None:
    """A list of rejects that is no UTF-8, a shard that is a folder, a tokenizer that is one: all
    are findings of one run."""
    out = tmp_path / "out"
    pack_small(source, out, shard_size=4000)
    rejects = out / "rejects.jsonl"
    data = bytearray(rejects.read_bytes())
    data[20] = 0xFF
    rejects.write_bytes(data)
    (out / "shard-00001.tar").unlink()
    (out / "shard-00001.tar").mkdir()
    (out / "tokenizer/tokenizer_config.json").unlink()
    (out / "tokenizer/tokenizer_config.json").mkdir()
    found = verify(out)
    codes = {finding.code for finding in found.problems}
    assert {"file-hash", "file-missing", "shard-open"} <= codes
    assert found.damaged_shards == ["shard-00001.tar"]


def test_tables_that_are_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Parquet footer, a row group, a text that is no UTF-8, a state.json: the file is named."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [f"say {i}" for i in range(3000)]
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"instruction": rows, "output": rows}), whole, row_group_size=500)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    (tmp_path / "group.parquet").write_bytes(data)
    (tmp_path / "footer.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    buffers = [None, pa.py_buffer(np.array([0, 1], "<i4").tobytes()), pa.py_buffer(b"\xff")]
    text = pa.Array.from_buffers(pa.string(), 1, buffers)
    pq.write_table(pa.table({"instruction": text, "output": ["a"]}), tmp_path / "text.parquet")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{")
    for name in ("group.parquet", "footer.parquet", "text.parquet", "saved"):
        text_said = said(["pack", tmp_path / name, "--out", tmp_path / "out", *PACK], capsys)
        assert name in text_said
        assert "please report" not in text_said
        assert not (tmp_path / "out").exists()
