"""Runs of several ranks and workers, killed at random and resumed with others.

What all runs served, each up to the state that the next one began from, must be the uncut run:
every sample once an epoch, and no state ahead or behind by a batch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from campaign.commands import Command, start
from campaign.room import Room
from campaign.soak_rank import GLOBAL_BATCH, loader_of
from campaign.verdict import Outcome, Verdict

SECONDS = 240.0
"""Of a run that nobody kills."""
Steps = dict[tuple[int, int], list[str]]
"""By epoch and position: the keys of a global batch."""


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Two or three kills, then the rest of the run."""
    name, plan = _plan(room, number)
    golden = _golden(plan)
    n_kills = chance.choice([2, 3])
    with room.scratch() as folder:
        (folder / "plan.json").write_text(json.dumps(plan))
        begin = loader_of(plan, 0, 2).state_dict()  # or a run killed at once has nothing to keep
        (folder / "state.json").write_text(json.dumps(begin))
        said: list[str] = []
        begins = [(0, 0)]
        for run in range(n_kills + 1):
            n_ranks, workers = (2, 2) if run == 0 else _others(chance)
            after = chance.randrange(0, 9) if run < n_kills else None
            said.append(f"{n_ranks} x {workers} to {after}")
            seen = _run(folder, run, n_ranks, workers, after, chance)
            fault = f"{name}: {', '.join(said)}"
            if seen is not None:
                return seen_as(fault, seen)
            begins.append(_state(folder))
        wrong = _compare(folder, golden, begins, n_kills + 1) or _once(golden)
    return Verdict(Outcome.SILENT if wrong else Outcome.SAME, fault, wrong or "")


def seen_as(fault: str, seen: str) -> Verdict:
    """A run that should have ended by itself, and did not."""
    outcome = Outcome.HANG if seen == "hang" else Outcome.FOREIGN
    return Verdict(outcome, fault, seen)


def _plan(room: Room, number: int) -> tuple[str, dict[str, Any]]:
    """What is trained on: packs, a mixture with pictures, packed pictures, rows of equal cost."""
    name = ("packed", "mixed pictures", "packed pictures", "balanced")[number % 4]
    kind = {"packed": "best-fit", "balanced": "text"}.get(name, "llava")
    kind = "llava-packed-zstd" if name == "packed pictures" else kind
    weights = {str(room.packed(kind).folder): 1.0}
    if name == "mixed pictures":
        weights[str(room.packed(kind, seed=1).folder)] = 0.5
    options = {"balance": "cost"} if name == "balanced" else {}
    plan = {"weights": weights, "loader": options, "epochs": 4, "pictures": "pictures" in name}
    return name, plan


def _others(chance: Random) -> tuple[int, int]:
    return chance.choice([1, 2, 4]), chance.choice([0, 1, 2])


def _golden(plan: dict[str, Any]) -> Steps:
    """The uncut run, by loaders of two ranks without workers."""
    ranks = [loader_of(plan, rank, 2) for rank in range(2)]
    found: Steps = {}
    for epoch in range(plan["epochs"]):
        position = 0
        for batches in zip(*ranks, strict=True):
            found[epoch, position] = [key for batch in batches for key in batch["keys"]]
            position += GLOBAL_BATCH
    return found


def _run(
    folder: Path, run: int, n_ranks: int, workers: int, after: int | None, chance: Random
) -> str | None:
    """Start the ranks and kill them after so many steps; None, or what was wrong."""
    np.zeros(n_ranks, np.int64).tofile(folder / f"steps-{run}")
    words = [str(folder), str(run)]
    ranks = [
        start(["--soak", *words, str(i), str(n_ranks), str(workers)], folder / f"out-{run}-{i}")
        for i in range(n_ranks)
    ]
    try:
        return _watch(folder / f"steps-{run}", ranks, after, chance)
    finally:
        for rank in ranks:
            rank.kill()


def _watch(steps: Path, ranks: list[Command], after: int | None, chance: Random) -> str | None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        statuses = [rank.wait(0) for rank in ranks]
        if any(status not in (None, 0) for status in statuses):
            said = [rank.said()[-300:] for rank in ranks]
            return f"ended with {statuses}: {said}"
        if None not in statuses:
            return None
        if after is not None and int(np.fromfile(steps, np.int64).max(initial=0)) >= after:
            time.sleep(chance.uniform(0, 0.05))
            return None
        time.sleep(0.002)
    return "hang"


def _state(folder: Path) -> tuple[int, int]:
    """Where the next run begins."""
    state = json.loads((folder / "state.json").read_text())
    return state["epoch"], state["position"]


def _compare(folder: Path, golden: Steps, begins: list[tuple[int, int]], n_runs: int) -> str | None:
    """What differs from the uncut run; None when nothing does."""
    places = [*golden, (max(golden)[0] + 1, 0)]
    for run in range(n_runs):
        logs = sorted(folder.glob(f"log-{run}-*"), key=lambda path: int(path.name.split("-")[2]))
        ranks = [[json.loads(line) for line in _whole_lines(path)] for path in logs]
        at = places.index(begins[run])
        for step, lines in enumerate(zip(*ranks, strict=False)):
            place, following = places[at + step], places[at + step + 1]
            keys = [key for line in lines for key in line["keys"]]
            if keys != golden[place]:
                return f"run {run}, step {step}, {place}: {keys} instead of {golden[place]}"
            states = {tuple(line["state"]) for line in lines}
            if states != {following}:
                return f"run {run}, after {place}: states {sorted(states)}, not {following}"
        n_left = len(golden) - at
        if run == n_runs - 1 and any(len(lines) != n_left for lines in ranks):
            return f"the last run made {[*map(len, ranks)]} of {n_left} steps"
    return None


def _whole_lines(path: Path) -> list[str]:
    """Without one that a kill cut off."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _once(golden: Steps) -> str | None:
    """Whether a sample is served again before every other one of its dataset.

    A key begins with the number of its dataset in a mixture, whose epochs go on through the
    mixture's.
    """
    counts: dict[str, Counter[str]] = {}
    for row in golden.values():
        for key in filter(None, row):
            counts.setdefault(_member(key), Counter())[key] = 0
    for _, row in sorted(golden.items()):
        for key in filter(None, row):
            counts[_member(key)][key] += 1
        for one in counts.values():
            if max(one.values()) - min(one.values()) > 1:
                return f"again before others: {one.most_common(2)}"
    return None


def _member(key: str) -> str:
    """The number of its dataset in a mixture; nothing where there is one."""
    return key.split("/")[0] if key.count("/") > 1 else ""
