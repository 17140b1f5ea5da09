"""Ranks that are forked from one process that has imported what training scripts import.

torch, transformers and DeepSpeed take 6 s of CPU to import, for each rank of each run; a fork
takes 10 ms. A rank gets the environment that torchrun gives it and runs the script as `__main__`.
torchrun, the deepspeed launcher and Slurm themselves are in tests/integration/test_launchers.py.

    test ──JSON lines──► this module as a process (imports once) ──fork──► rank 0, rank 1, ...
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from asked import Asked
from launch import LIMIT_S, environment, free_port

PRELOAD = (
    "torch",
    "torch.distributed",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "deepspeed",
    "shardkit.builder",
    "shardkit.loader",
)


def run_ranks(n: int, script: Path, *arguments: object) -> None:
    """Run a script on n ranks; fail with the end of what they wrote when one of them fails."""
    with started(n, script, *arguments) as ranks:
        ranks.wait()


class Ranks:
    """Ranks that run."""

    def __init__(self, pids: Sequence[int], logs: Sequence[Path]) -> None:
        self.pids, self._logs = pids, logs
        self._left = set(pids)

    def poll(self) -> None:
        """Fail when a rank has failed; forget those that have ended."""
        for pid in sorted(self._left):
            status = _forker().ask({"pid": pid})
            if status is not None:
                self._left.discard(pid)
                assert status == 0, f"status {status}\n{self._said()}"

    def wait(self) -> None:
        """Until all have ended well; a failed rank does not wait for the others."""
        end = time.monotonic() + LIMIT_S
        while self._left:
            self.poll()
            assert time.monotonic() < end, f"not done\n{self._said()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to all that run, and to what they have started."""
        for pid in self._left:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in sorted(self._left):
            while _forker().ask({"pid": pid}) is None:
                time.sleep(0.01)
        self._left.clear()

    def _said(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in self._logs)


@contextmanager
def started(n: int, script: Path, *arguments: object) -> Iterator[Ranks]:
    """The ranks of a script; those that still run at the end are killed."""
    port = str(free_port())
    with TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.log" for rank in range(n)]
        pids = []
        for rank, log in enumerate(logs):
            request = {
                "argv": [str(script), *map(str, arguments)],
                "log": str(log),
                "environment": {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(n),
                    "LOCAL_WORLD_SIZE": str(n),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "TORCHELASTIC_RUN_ID": "none",
                },
            }
            pids.append(int(_forker().ask(request)))
        ranks = Ranks(pids, logs)
        try:
            yield ranks
        finally:
            ranks.kill()


@cache
def _forker() -> Asked:
    helpers = str(Path(__file__).parent)
    path = os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])
    env = environment(PYTHONPATH=path, TOKENIZERS_PARALLELISM="false")
    forker = Asked([sys.executable, __file__], env)
    atexit.register(forker.close)
    return forker


def _serve() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    for name in PRELOAD:
        importlib.import_module(name)
    statuses: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = _fork(**request) if "argv" in request else _status(request["pid"], statuses)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _fork(argv: list[str], log: str, environment: dict[str, str]) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        os.environ.update(environment)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = argv
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status(pid: int, statuses: dict[int, int]) -> int | None:
    """Of a rank that has ended; minus a signal."""
    if pid not in statuses:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        statuses[pid] = os.waitstatus_to_exitcode(status)
    return statuses[pid]


if __name__ == "__main__":
    _serve()
