"""The benchmarks run, so that they do not rot: tiny, and without looking at the times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shared import shared

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


@pytest.mark.slow
@pytest.mark.needs_shared
def test_real_rows_through_a_family() -> None:
    """benchmarks/families.py on a few real rows: nothing differs from the processor."""
    data = shared("data/llava").parent
    command = [sys.executable, str(FOLDER / "families.py"), str(data), "--rows", "24"]
    done = subprocess.run(
        [*command, "--family", "qwen2_5_vl"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 rows, 0 rejected, " in done.stdout
    assert "24 ids compared" in done.stdout
