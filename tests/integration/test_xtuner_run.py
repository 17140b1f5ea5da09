"""XTuner's own `xtuner train` on our data, where XTuner is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from launch import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("xtuner") is None,
    reason="XTuner is not installed (benchmarks/xtuner_run.py says how)",
)
def test_xtuner_trains_the_same_on_our_dataset(tmp_path: Path) -> None:
    """Losses and weights are those of XTuner's own dataset, also from a config it dumped."""
    import sys

    script = [sys.executable, str(ROOT / "benchmarks/xtuner_run.py"), "--work", str(tmp_path)]
    report = tmp_path / "report.json"
    run([*script, "--rows", "60", "--iterations", "4", "--only", "rows", "--json", str(report)])
    (found,) = json.loads(report.read_text())
    assert found["losses_equal"]
    assert found["weights_equal"]
    assert found["dumped_config_equal"]
