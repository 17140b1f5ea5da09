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

from shardkit.processes import can_fork

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
@pytest.mark.usefixtures("can_be_interrupted")
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


@pytest.mark.slow
def test_workers_of_a_parent_that_ignores_sigint_work_on(tmp_path: Path) -> None:
    """In the background of a shell SIGINT is ignored: what a terminal sends there hits nobody."""
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    (tmp_path / "pool.py").write_text("import signal\nsignal.signal(2, signal.SIG_IGN)\n" + POOL)
    with subprocess.Popen(
        [sys.executable, tmp_path / "pool.py"], start_new_session=True
    ) as process:
        for moment in ("importing-*", "working-*"):
            while len(list(tmp_path.glob(moment))) < 2:
                assert process.poll() is None
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGKILL)


SLOW_START = """
import os, pathlib, signal, sys, time
from concurrent.futures import FIRST_COMPLETED, wait
from multiprocessing import reduction
from multiprocessing.context import SpawnProcess
from shardkit.processes import WorkerPool

HAS_BEGUN, MAY_DIE = (pathlib.Path(__file__).with_name(n) for n in ("has-begun", "may-die"))

def begin():
    pass

def work(is_to_die):
    HAS_BEGUN.touch()
    while is_to_die:
        if MAY_DIE.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)

def first_dies():
    MAY_DIE.touch()
    while not pool._broken:
        time.sleep(0.01)
    time.sleep(0.5)  # Python closes the pool's pipes meanwhile

start, dump = SpawnProcess.start, reduction.dump

def start_slowly(process):
    start(process)
    if pool._processes:
        first_dies()

def dump_slowly(value, *more):
    dump(value, *more)
    if pool._processes and isinstance(value, SpawnProcess):
        first_dies()

if __name__ == "__main__":
    when, how = sys.argv[1:]
    if when == "started":
        SpawnProcess.start = start_slowly
    else:
        reduction.dump = dump_slowly
    pool = WorkerPool(2, begin)
    try:
        first = pool.submit(work, True)
        while not HAS_BEGUN.exists():
            time.sleep(0.01)
        pool.submit(work, False)
        print(type(first.exception()).__name__, flush=True)
    except Exception as err:
        print(type(err).__name__, flush=True)
    pool.shutdown(wait=how == "wait", cancel_futures=True)
"""


@pytest.mark.parametrize("how", ["wait", "leave"])
@pytest.mark.parametrize("when", ["started", "written"])
def test_a_worker_that_dies_while_another_starts_is_not_the_end(
    tmp_path: Path, when: str, how: str
) -> None:
    """The pool says that it is broken and can be shut down; the program ends, nothing is left."""
    script = tmp_path / "pool.py"
    script.write_text(SLOW_START)
    with subprocess.Popen(
        [sys.executable, script, when, how],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            stdout, _ = process.communicate(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert stdout == "BrokenProcessPool\n"
    assert process.returncode == 0


DYING_START = """
import os, signal
from shardkit.processes import WorkerPool

class Late:
    def __reduce__(self):
        return die, ()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def begin(late, much):
    pass

if __name__ == "__main__":
    # more than a pipe holds, and the worker dies before it has read it
    pool = WorkerPool(2, begin, Late(), bytes(10 << 20))
    futures = [pool.submit(abs, -1) for _ in range(2)]
    print({type(one.exception()).__name__ for one in futures}, flush=True)
    pool.shutdown()
"""


def test_a_worker_that_dies_as_it_starts_is_not_waited_for(tmp_path: Path) -> None:
    """Whatever it was to be given."""
    script = tmp_path / "pool.py"
    script.write_text(DYING_START)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "{'BrokenProcessPool'}\n", done.stderr


POOLS = """
import gc, multiprocessing, sys, threading
from pathlib import Path
from shardkit.builder.folder import locked
from shardkit.processes import ForkPool, this_is_a_command
if __name__ == "__main__":
    if "command" in sys.argv:
        this_is_a_command()
    if "thread" in sys.argv:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if "locked" in sys.argv:
        lock = locked(Path(__file__).parent)
        lock.__enter__()
    pools = [ForkPool(gc.collect, "a"), ForkPool(gc.collect, "b")]
    for pool in pools:
        pool.begin(workers=1)
    print(*[pool.run(abs, [-2, 3]) for pool in pools])
    for child in multiprocessing.active_children():
        words = open(f"/proc/{child.pid}/cmdline").read()
        print("spawned" if "spawn_main" in words else "forked")
    for pool in pools:
        pool.close()
    print(len(multiprocessing.active_children()))
"""


@pytest.mark.skipif(not can_fork(), reason="workers are forked on Linux only")
@pytest.mark.parametrize(
    ("words", "how"),
    [
        ([], "spawned"),
        (["command"], "forked"),
        (["command", "thread"], "spawned"),
        (["command", "locked"], "spawned"),
    ],
)
def test_only_our_own_command_is_forked(tmp_path: Path, words: list[str], how: str) -> None:
    """And only before it has a thread, or a lock, which the forked ones would hold, too.

    A pool ends when it is closed, whichever came first: one that was forked later would hold the
    other's pipe open.
    """
    (tmp_path / "pools.py").write_text(POOLS)
    command = [sys.executable, str(tmp_path / "pools.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split("\n") == ["[2, 3] [2, 3]", how, how, "0", ""], done.stderr
