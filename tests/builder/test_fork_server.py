"""Workers that are forked loaded: killed in any way they leave no process, and a rerun mends it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from kills import is_worker
from packing_cases import command, make_case
from records import digests, pack_small

from shardkit.builder import build_engines
from shardkit.processes import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers are forked on Linux only")
LIMIT_S = 120


def start(tmp_path: Path) -> tuple[subprocess.Popen[str], list[psutil.Process], list[str]]:
    """A pack of many parts with two workers, its fork server and workers, and its command."""
    source, options = make_case("text", tmp_path, 4_000)
    words = command(source, tmp_path / "out", options, "--workers", "2")
    pack = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while time.monotonic() - began < LIMIT_S and pack.poll() is None:
        servers = [p for p in psutil.Process(pack.pid).children() if is_worker(p.pid)]
        workers = servers[0].children() if servers else []
        has_begun = any((tmp_path / "out" / ".building").glob("part-*.json"))
        if len(workers) == 2 and has_begun:
            return pack, [servers[0], *workers], words
        time.sleep(0.005)
    raise AssertionError("the workers did not begin")


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end by themselves."""
    _, alive = psutil.wait_procs(processes, timeout=LIMIT_S)
    return not alive


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "worker", "caller"])
def test_a_kill_leaves_nothing_and_a_rerun_mends_it(tmp_path: Path, victim: str) -> None:
    """SIGKILL of the process that forks, of a worker, of the pack itself: all others end, the pack
    says what happened, and the same command again makes the bytes of one process."""
    pack, processes, words = start(tmp_path)
    {"server": processes[0], "worker": processes[1], "caller": pack}[victim].kill()
    _, errors = pack.communicate(timeout=LIMIT_S)
    assert gone(processes)
    if victim != "caller":
        assert pack.returncode == 1
        assert "a worker process was killed" in errors
        assert "Traceback" not in errors
    subprocess.run(words, check=True, capture_output=True, timeout=LIMIT_S)
    source, options = make_case("text", tmp_path, 4_000)
    pack_small(source, tmp_path / "one", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "one")


def test_a_refused_pack_ends_its_fork_server(tmp_path: Path) -> None:
    """The fork server begins before the plan: an error of the plan leaves no process behind."""
    code = (
        "import sys, multiprocessing as m\n"
        "from shardkit import pack\n"
        "from shardkit.errors import ShardkitError\n"
        "if __name__ == '__main__':\n"
        "    try: pack(sys.argv[1], sys.argv[2], tokenizer=sys.argv[3], workers=2)\n"
        "    except ShardkitError: print('refused', len(m.active_children()))\n"
    )
    script = tmp_path / "refused.py"
    script.write_text(code)
    (tmp_path / "rows.json").write_text("[{]")
    words = [sys.executable, str(script), str(tmp_path / "rows.json"), str(tmp_path / "out")]
    tokenizer = str(Path(__file__).resolve().parents[1] / "data" / "tokenizer")
    done = subprocess.run(
        [*words, tokenizer], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.stdout == "refused 0\n", done.stderr


def test_where_forking_is_not_safe_workers_are_spawned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback makes the same bytes."""
    source, options = make_case("text-packed", tmp_path)
    pack_small(source, tmp_path / "one", **options)
    calls: list[Any] = []
    spawned: Callable[..., Any] = build_engines._run_pool
    monkeypatch.setattr(build_engines, "can_fork", lambda: False)

    def watched(*given: Any) -> Any:
        calls.append(given)
        return spawned(*given)

    monkeypatch.setattr(build_engines, "_run_pool", watched)
    pack_small(source, tmp_path / "many", workers=2, **options)
    assert calls
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
