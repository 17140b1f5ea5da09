"""Worker processes and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLOW_IMPORT = """
import multiprocessing, os, pathlib, time

HERE = pathlib.Path(__file__).parent
if multiprocessing.current_process().name != "MainProcess":
    (HERE / f"importing-{os.getpid()}").touch()
    time.sleep(2)  # stands for the import of large packages

def begin():
    pass

def square(number):
    (HERE / f"working-{number}").touch()
    time.sleep(60)
"""
POOL = """
import sys
from shardkit.processes import WorkerPool
import slow_import

if __name__ == "__main__":
    with WorkerPool(2, slow_import.begin) as pool:
        try:
            list(pool.map(slow_import.square, range(2)))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["importing-*", "working-*"])
def test_workers_die_of_sigint_without_a_word(tmp_path: Path, moment: str) -> None:
    """SIGINT to the group, while workers import and while they work: only the parent speaks."""
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    (tmp_path / "pool.py").write_text(POOL)
    with subprocess.Popen(
        [sys.executable, tmp_path / "pool.py"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        while len(list(tmp_path.glob(moment))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=55)  # less than the work takes
    assert stderr == "interrupted\n"
