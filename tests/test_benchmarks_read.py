"""The benchmarks run, tiny and not timed, and their report is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)


def run(*words: str) -> str:
    """What a benchmark script prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / words[0]), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_reading_is_measured_and_reported(tmp_path: Path) -> None:
    """Ours and the limit are measured on the same samples; a rival that fails is shown."""
    contenders = ["shardkit", "memmap", "webdataset"]
    words = ["--python", "webdataset=no-such-python"]
    text = run("read.py", "--quick", "--json", "--only", *contenders, *words)
    report = json.loads(text)
    (tmp_path / "read.json").write_text(text)
    (tmp_path / "start.json").write_text(run("start.py", "--quick", "--json"))

    run(
        "report.py",
        str(tmp_path / "read.json"),
        str(tmp_path / "start.json"),
        "--out",
        str(tmp_path),
    )

    rows = {(row["contender"], row["case"]): row for row in report["rows"]}
    for case in ("text/0", "packed/0", "images/0", "decoded/0"):
        assert rows["shardkit", case]["metrics"]["samples_per_s"] > 0
        assert rows["memmap loop (the limit)", case]["metrics"]["samples_per_s"] > 0
    assert "no-such-python" in rows["webdataset", "all"]["error"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert "Failed here" in page
    assert "no-such-python" in page
    assert "1,024 ranks" in page
    assert (tmp_path / "benchmarks.svg").read_text().startswith("<svg")
