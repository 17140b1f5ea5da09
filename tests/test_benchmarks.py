"""The benchmarks run, so that they do not rot: tiny, and without looking at the times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "contenders"),
    [
        ("write.py", (), {"shardkit", "tarfile"}),
        ("where.py", (), {"text", "packed"}),
        ("pack.py", ("--engines", "hf", "--only", "bare", "shardkit"), {"bare", "shardkit"}),
    ],
)
def test_a_benchmark_runs(script: str, options: tuple[str, ...], contenders: set[str]) -> None:
    """It prints the machine and a row with figures for each contender."""
    command = [sys.executable, str(FOLDER / script), "--quick", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["benchmark"] == script.removesuffix(".py")
    assert report["machine"]["n_cores"] >= 1
    assert contenders <= {row["contender"] for row in report["rows"]}
    assert all("error" not in row for row in report["rows"])
