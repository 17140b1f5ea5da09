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

PLANS = {
    "packed": [("best-fit", 1.0)],
    "mixed pictures": [("llava", 1.0), ("llava", 0.5)],
    "packed pictures": [("llava-packed-zstd", 1.0)],
    "balanced": [("text", 1.0)],
    "everything": [("llava-packed-zstd", 1.0), ("best-fit-128", 0.5), ("llava-packed-zstd", 0.25)],
}
"""Kinds of datasets, with their weights in a mixture."""
KILLED, DONE = "killed", "done"
SECONDS = 240.0
"""Of a run that nobody kills."""
Steps = dict[tuple[int, int], list[str]]
"""By epoch and position: the keys of a global batch."""


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Two or three kills, then the rest of the run."""
    name = [*PLANS][number % len(PLANS)]
    return _soak(room, chance, name, n_kills=chance.choice([2, 3]), epochs=4)


def long_case(room: Room, chance: Random, number: int) -> Verdict:
    """One run over packed text and packed pictures, mixed, that is killed thirty times."""
    return _soak(room, chance, "everything", n_kills=30, epochs=80)


def _soak(room: Room, chance: Random, name: str, *, n_kills: int, epochs: int) -> Verdict:
    plan = _plan(room, name, epochs)
    golden = _golden(plan)
    said: list[str] = []
    with room.scratch() as folder:
        (folder / "plan.json").write_text(json.dumps(plan))
        begin = loader_of(plan, 0, 2).state_dict()  # or a run killed at once has nothing to keep
        (folder / "state.json").write_text(json.dumps(begin))
        begins, ended = [(0, 0)], []
        for run in range(n_kills + 1):
            n_ranks, workers = (2, 2) if run == 0 else _others(chance)
            after = chance.randrange(0, 9) if run < n_kills else None
            said.append(f"{n_ranks} x {workers} to {after}")
            ended.append(_run(folder, run, n_ranks, workers, after, chance))
            begins.append(_state(folder))
            if ended[-1] not in (KILLED, DONE):
                outcome = Outcome.HANG if ended[-1] == "hang" else Outcome.FOREIGN
                return Verdict(outcome, f"{name}: {', '.join(said)}", ended[-1])
        wrong = _compare(folder, golden, begins, n_kills + 1) or _once(golden)
    outcome = Outcome.SILENT if wrong else Outcome.SAME
    counts = {"kills": ended.count(KILLED), "steps": len(golden), "runs": 1}
    return Verdict(outcome, f"{name}: {', '.join(said)}", wrong or "", counts)


def _plan(room: Room, name: str, epochs: int) -> dict[str, Any]:
    """What is trained on: packs, a mixture with pictures, packed pictures, rows of equal cost."""
    weights = {str(room.packed(kind, seed=n).folder): w for n, (kind, w) in enumerate(PLANS[name])}
    options = {"balance": "cost"} if name == "balanced" else {}
    has_pictures = any("llava" in kind for kind, _ in PLANS[name])
    return {"weights": weights, "loader": options, "epochs": epochs, "pictures": has_pictures}


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
) -> str:
    """Start the ranks and kill them after so many steps; KILLED, DONE, or what was wrong."""
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


def _watch(steps: Path, ranks: list[Command], after: int | None, chance: Random) -> str:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        statuses = [rank.wait(0) for rank in ranks]
        if any(status not in (None, 0) for status in statuses):
            said = [rank.said()[-300:] for rank in ranks]
            return f"ended with {statuses}: {said}"
        if None not in statuses:
            return DONE
        if after is not None and int(np.fromfile(steps, np.int64).max(initial=0)) >= after:
            time.sleep(chance.uniform(0, 0.05))
            return KILLED
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
