"""P2: the same bytes for any number of workers, after any kill, and from Slurm-style parts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json, write_llava

from shardkit import pack
from shardkit.builder.merge import merge

KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "text-packed": {"packing": "best-fit", "shuffle_seed": 3},
    "text-zstd": {"packing": "concat", "compression": "zstd:1"},
    "llava": {"image_tokens": 4, "max_length": 128},
    "llava-packed": {"image_tokens": 4, "max_length": 128, "packing": "best-fit"},
}


def make(kind: str, folder: Path, n: int = 220) -> tuple[Path, dict[str, Any]]:
    options = dict(KINDS[kind])
    if kind.startswith("llava"):
        options["image_root"] = folder / "images"
        return write_llava(folder, n), options
    return write_json(folder / "rows.json", alpaca_rows(n, n_bad=5)), options


def command(source: Path, out: Path, options: dict[str, Any], *more: str) -> list[str]:
    words = [sys.executable, "-m", "shardkit", "pack", str(source), "--out", str(out)]
    merged = {
        "tokenizer": TOKENIZER,
        "template": "qwen_chat",
        "max_length": 64,
        "part_rows": 50,
        "tokenizer_engine": "hf",
    } | options
    for name, value in merged.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, *more]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_parts_do_not_matter(tmp_path: Path, kind: str) -> None:
    """1 and 3 processes, and three shares merged, give equal files: all of them, manifest too."""
    source, options = make(kind, tmp_path)
    pack_small(source, tmp_path / "one", **options)
    pack_small(source, tmp_path / "many", workers=3, **options)
    for number in (2, 1, 3):
        share: Any = {"tokenizer": TOKENIZER, "template": "qwen_chat", "max_length": 64}
        share |= {"part_rows": 50, "engine": "hf"} | options
        assert pack(source, tmp_path / "parts", part=(number, 3), **share) is None
    merge(tmp_path / "parts")
    expected = digests(tmp_path / "one")
    assert len(expected) > 4
    assert digests(tmp_path / "many") == expected
    assert digests(tmp_path / "parts") == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text-packed", "llava"])
def test_killed_at_random_moments(tmp_path: Path, kind: str) -> None:
    """SIGKILL to the whole process group, again and again; the run that ends gives equal files."""
    n = int(os.environ.get("SHARDKIT_KILLS", "4"))
    source, options = make(kind, tmp_path, 1500)
    pack_small(source, tmp_path / "whole", **options)
    rng = random.Random(7)
    out = tmp_path / "killed"
    for _ in range(n):
        process = subprocess.Popen(
            command(source, out, options, "--workers", "2"),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_until_building(out, process)
        time.sleep(rng.uniform(0, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (out / "manifest.json").exists():
            break
    done = subprocess.run(
        command(source, out, options, "--workers", "2"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(tmp_path / "whole")


def _wait_until_building(out: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if (out / ".building/plan.json").exists() or process.poll() is not None:
            return
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_is_said_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """One worker is killed: a clear message, exit 1, no manifest; the same command then ends."""
    source, options = make("text", tmp_path, 4000)
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(source, out, options, "--workers", "2"), stderr=subprocess.PIPE, text=True
    )
    children: list[int] = []
    while not children and process.poll() is None:
        children = [pid for pid in _children(process.pid) if _is_worker(pid)]
        time.sleep(0.02)
    while not list(out.glob(".building/part-*.json")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(children[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "worker process was killed" in errors
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    assert not (out / "manifest.json").exists()
    assert subprocess.run(command(source, out, options), check=False).returncode == 0
    pack_small(source, tmp_path / "whole", **options)
    assert digests(out) == digests(tmp_path / "whole")


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def _is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """The same command on a finished dataset returns it; no file is touched."""
    source, options = make("text", tmp_path)
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
