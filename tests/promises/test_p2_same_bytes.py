"""P2: the same bytes after any kill, and from any place; for any engine: tests/contracts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kills import is_worker, run_and_kill, workers_of
from packing_cases import command, make_case
from records import alpaca_rows, digests, pack_small, write_json


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "text-packed", "llava", "llava-packed"])
def test_killed_at_random_moments(tmp_path: Path, kind: str) -> None:
    """SIGKILL to all processes, to the parent alone or to a worker, again and again: the run that
    ends gives equal files. SHARDKIT_KILLS says how many kills (default: 3)."""
    source, options = make_case(kind, tmp_path, 1500)
    pack_small(source, tmp_path / "whole", **options)
    out = tmp_path / "killed"
    n = int(os.environ.get("SHARDKIT_KILLS", "3"))
    run_and_kill(command(source, out, options, "--workers", "2"), out, n, random.Random(kind))
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """The parent alone is killed: no worker goes on writing into the folder."""
    source, options = make_case("text", tmp_path, 4000)
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(source, out, options, "--workers", "2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(out.glob(".building/part-*")) and process.poll() is None:
        time.sleep(0.02)
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while any(map(is_worker, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_worker, workers))


@pytest.mark.slow
def test_a_killed_worker_is_said_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """One worker is killed: a clear message, exit 1, no manifest; the same command then ends."""
    source, options = make_case("text", tmp_path, 4000)
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(source, out, options, "--workers", "2"), stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob(".building/part-*.json")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "worker process was killed" in errors
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    assert not (out / "manifest.json").exists()
    assert subprocess.run(command(source, out, options), check=False).returncode == 0
    pack_small(source, tmp_path / "whole", **options)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """The same command on a finished dataset returns it; no file is touched."""
    source, options = make_case("text", tmp_path)
    first = pack_small(source, tmp_path / "out", **options)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert pack_small(source, tmp_path / "out", **options) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items() <= (
        times.items()
    )


def test_names_of_places_are_not_in_the_files(tmp_path: Path) -> None:
    """The same file in another folder gives the same dataset: no path is in it."""
    rows = alpaca_rows(60)
    (tmp_path / "a").mkdir()
    (tmp_path / "b/c").mkdir(parents=True)
    pack_small(write_json(tmp_path / "a/rows.json", rows), tmp_path / "one")
    pack_small(write_json(tmp_path / "b/c/rows.json", rows), tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    for path in (tmp_path / "one").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes()
