"""Commands of shardkit: in this process, or in one that may be killed and has other rights."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from asked import Asked

from campaign.verdict import Outcome, Verdict
from campaign.zygote import run_main

_HELPERS = Path(__file__).resolve().parents[1]
_STATUSES = (0, 1, 2, 130)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    status: int | None
    """None: it was still running at the end of its time. Negative: the signal that ended it."""
    said: str
    """Standard output and errors."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a command may do."""

    without_rights: bool = False
    """Files say who may read and write them, also to root."""
    n_files: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """A command that was started in a process of its own, which leads a session."""

    pid: int
    log: Path

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None when it still runs after so many seconds."""
        status = _zygote().ask({"pid": self.pid, "seconds": seconds})
        return None if status is None else int(status)

    def kill(self, *, alone: bool = False) -> None:
        """SIGKILL to it, and, unless `alone`, to all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
        self.wait(60)

    def said(self) -> str:
        """What it wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@cache
def _zygote() -> Asked:
    path = os.pathsep.join([str(_HELPERS), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    return Asked([sys.executable, "-m", "campaign.zygote"], env)


def close() -> None:
    """End the process that forks commands, when there is one."""
    if _zygote.cache_info().currsize:
        _zygote().close()
        _zygote.cache_clear()


def in_process(argv: Sequence[str]) -> Ran:
    """Run a command here; an exception that comes out of it is written as a traceback."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return Ran(run_main(list(argv)), said.getvalue())


def start(argv: Sequence[str], log: Path, limits: Limits | None = None) -> Command:
    """Run a command in a process of its own."""
    fields = asdict(limits or Limits())
    pid = _zygote().ask({"argv": list(argv), "log": str(log), "limits": fields})
    command = Command(int(pid), log)
    while command.wait(0) is None:  # it can be killed with its workers when it leads its session
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(command.pid) == command.pid:
                break
        time.sleep(0.0002)
    return command


def run(
    argv: Sequence[str], log: Path, limits: Limits | None = None, *, seconds: float = 60
) -> Ran:
    """The same, and wait for its end; it is killed after so many seconds."""
    command = start(argv, log, limits)
    status = command.wait(seconds)
    if status is None:
        command.kill()
    return Ran(status, command.said())


def judge_run(ran: Ran, fault: str, *, names: Sequence[str] = ("",)) -> Verdict:
    """A refusal that names one of `names`, or worse; success is SAME, for others to look at."""
    last = ran.said.strip().splitlines()[-1:] or [""]
    seen = f"status {ran.status}: {last[0][:300]}"
    if ran.status is None:
        return Verdict(Outcome.HANG, fault, seen)
    if ran.status < 0:
        return Verdict(Outcome.DIED, fault, seen)
    if "Traceback (most recent call last)" in ran.said or ran.status not in _STATUSES:
        return Verdict(Outcome.FOREIGN, fault, seen)
    if ran.status == 0:
        return Verdict(Outcome.SAME, fault, seen)
    is_named = any(name in ran.said for name in names)
    return Verdict(Outcome.REFUSED if is_named else Outcome.UNNAMED, fault, seen)
