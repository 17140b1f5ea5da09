"""Children that do the cases: one that dies or hangs is counted, and another one goes on."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from campaign.case import SECOND_S
from campaign.kinds import CAMPAIGNS
from campaign.verdict import Outcome, Verdict

_HELPERS = Path(__file__).resolve().parents[1]
ALONE = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Of a child: one thread of arithmetic, so that as many children as cores do not fight for them."""
START_S = 120.0
"""A child that says nothing for so long beyond the time of a case and its second try hangs."""


class Line(msgspec.Struct):
    """What a child writes: that it begins a case, and then what came of it."""

    number: int
    outcome: Outcome | None = None
    fault: str = ""
    seen: str = ""
    counts: dict[str, int] = {}


@dataclass(slots=True)
class Tally:
    """What came of the cases of one kind."""

    seconds: float = 0.0
    skipped: str | None = None
    counts: Counter[Outcome] = field(default_factory=Counter)
    more: Counter[str] = field(default_factory=Counter)
    """What was done how often beside the cases: kills of a command, by its name."""
    faults: dict[int, Verdict] = field(default_factory=dict)
    """By case number: what is a fault of ours, and what was refused without a name."""

    def add(self, number: int, verdict: Verdict) -> None:
        """Count a case."""
        self.counts[verdict.outcome] += 1
        self.more.update(verdict.counts)
        if verdict.is_bad or verdict.outcome == Outcome.UNNAMED:
            self.faults[number] = verdict


def run_kind(kind: str, seed: int, seconds: float, jobs: int, last: int = 2**31) -> Tally:
    """Cases of a kind below `last`, for so many seconds, in `jobs` children that share them out."""
    tally = Tally(skipped=CAMPAIGNS[kind].why_not())
    if tally.skipped is not None:
        return tally
    began = time.monotonic()
    threads = [
        threading.Thread(
            target=_lead, args=(kind, seed, range(job, last, jobs), began + seconds, tally)
        )
        for job in range(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.seconds = time.monotonic() - began
    return tally


def _lead(kind: str, seed: int, numbers: range, end: float, tally: Tally) -> None:
    """Keep one child at work on these cases until the end."""
    while time.monotonic() < end and numbers:
        number = _one_child(kind, seed, numbers, end, tally)
        numbers = range(number, numbers.stop, numbers.step)


def _one_child(kind: str, seed: int, numbers: range, end: float, tally: Tally) -> int:
    """Run a child on these cases; the one that the next child begins with."""
    path = os.pathsep.join([str(_HELPERS), os.environ.get("PYTHONPATH", "")])
    child_words = [numbers.start, numbers.stop, numbers.step, end - time.monotonic()]
    words = ["--only", kind, "--seed", seed, "--child", *child_words]
    child = subprocess.Popen(
        [sys.executable, "-m", "campaign", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | ALONE | {"PYTHONPATH": path},
    )
    lines: queue.Queue[Line | None] = queue.Queue()
    errors: list[str] = []
    readers = [
        threading.Thread(target=_read, args=(child, lines), daemon=True),
        threading.Thread(target=_keep_errors, args=(child, errors), daemon=True),
    ]
    for reader in readers:
        reader.start()
    number, is_in_case = numbers.start, False
    patience = CAMPAIGNS[kind].patience_s
    patience += max(patience, SECOND_S) + START_S
    try:
        while (line := lines.get(timeout=patience)) is not None:
            number, is_in_case = line.number, line.outcome is None
            if line.outcome is not None:
                tally.add(number, Verdict(line.outcome, line.fault, line.seen, line.counts))
                number += numbers.step
        child.wait()
        readers[1].join(10)
        if child.returncode or is_in_case:
            last = "".join(errors).strip()[-600:]
            seen = f"status {child.returncode}: {last}"
            tally.add(number, Verdict(Outcome.DIED, f"case {number} of {kind}", seen))
            number += numbers.step
    except queue.Empty:
        tally.add(number, Verdict(Outcome.HANG, f"case {number} of {kind}", f"{patience:.0f} s"))
        number += numbers.step
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for reader in readers:  # both pipes end with the child
            reader.join()
    return number


def _read(child: subprocess.Popen[str], lines: queue.Queue[Line | None]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for text in child.stdout:
            if text.startswith("{"):
                lines.put(msgspec.json.decode(text, type=Line))
    lines.put(None)


def _keep_errors(child: subprocess.Popen[str], errors: list[str]) -> None:
    assert child.stderr is not None
    with child.stderr:
        for text in child.stderr:
            errors.append(text)
            del errors[:-40]
