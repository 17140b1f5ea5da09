"""Worker processes and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
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


SLOW_START = """
import os, signal, sys, time
from concurrent.futures import FIRST_COMPLETED, wait
from shardkit.processes import WorkerPool

class Slow:
    def __setstate__(self, state):
        time.sleep(1)

    def __getstate__(self):
        return 1

def begin(slow, much):
    pass

def work(is_to_die):
    time.sleep(0.3)  # now the other one starts
    if is_to_die:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    # more than a pipe holds: each start lasts until the worker has read it
    pool = WorkerPool(2, begin, Slow(), bytes(10 << 20))
    futures = [pool.submit(work, is_to_die) for is_to_die in (True, False)]
    done, _ = wait(futures, return_when=FIRST_COMPLETED)
    print(len(pool._processes), {type(one.exception()).__name__ for one in done}, flush=True)
    pool.shutdown(wait=sys.argv[1] == "wait", cancel_futures=True)
"""


@pytest.mark.parametrize("how", ["wait", "leave"])
def test_a_worker_that_dies_while_another_starts_is_not_the_end(tmp_path: Path, how: str) -> None:
    """The pool can be shut down, and the program ends, with no process left."""
    script = tmp_path / "pool.py"
    script.write_text(SLOW_START)
    with subprocess.Popen(
        [sys.executable, script, how], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            stdout, _ = process.communicate(timeout=30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert stdout == "2 {'BrokenProcessPool'}\n"
    assert process.returncode == 0
