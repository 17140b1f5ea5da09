"""Kill a pack at random moments, as the machine, the scheduler or the memory killer does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # `make campaign` skips what needs it
    import psutil

VICTIMS = ("all", "parent", "worker")


def run_and_kill(command: list[str], out: Path, n: int, rng: random.Random) -> Counter[str]:
    """Start the command and kill some of its processes, n times; then let it end.

    `out`: the folder that it packs into; when it is finished before the last kill, it is begun
    anew with --overwrite. Returns how often each kind of victim was killed, and after how many
    kills some parts were done and some not.
    """
    killed: Counter[str] = Counter()
    for _ in range(n):
        again = ["--overwrite"] if (out / "manifest.json").exists() else []
        process = subprocess.Popen(
            [*command, *again],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if rng.random() < 0.75:
            _wait_until_building(process)
        time.sleep(rng.uniform(0, 2.5))
        killed[_kill(process, rng.choice(VICTIMS))] += 1
        process.wait()
        killed["with parts done"] += bool(list(out.glob(".building/part-*.json")))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return killed


def workers_of(pid: int) -> list[int]:
    """The fork server that a process has started, then the workers forked from it."""
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children(recursive=True)
        return [child.pid for child in found if is_worker(child.pid)]
    return []


def is_worker(pid: int) -> bool:
    """Whether this descendant of a pack lives and is a fork server or worker: Python's resource
    tracker is the only other one. (One that has ended has no command line.)"""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return bool(words) and b"resource_tracker" not in words


def _kill(process: subprocess.Popen[bytes], victim: str) -> str:
    """Kill; what was killed in the end ("nobody" when the pack had ended)."""
    if process.poll() is not None:
        return "nobody"
    workers = workers_of(process.pid)
    if victim == "worker" and workers:
        os.kill(workers[-1], signal.SIGKILL)
    elif victim == "parent":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        return "all"
    return victim


def _wait_until_building(process: subprocess.Popen[bytes]) -> None:
    """Until this run has started its workers; a kill may hit it while it still plans."""
    for _ in range(1200):
        if workers_of(process.pid) or process.poll() is not None:
            return
        time.sleep(0.05)
