"""One rank of a run that may be killed at any moment; see campaign.soak.

It trains on nothing: each step it writes down what it was handed out and what its state says
then. Ranks wait for each other at every step, as a collective makes them; every few steps the
first one writes the state where the next run finds it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from shardkit import ShardDataset, ShardLoader, ShardMixture

GLOBAL_BATCH = 8
SAVE_EVERY, PEEK_EVERY, BREAK_EVERY, EVALUATE_EVERY = 3, 4, 5, 7


def loader_of(plan: dict[str, Any], rank: int, world_size: int, workers: int = 0) -> ShardLoader:
    """The loader of a plan: paths with weights, options."""
    options: dict[str, Any] = {
        "rank": rank,
        "world_size": world_size,
        "seed": 5,
        "drop_last": False,
    }
    options["image_transform"] = colour if plan["pictures"] else None
    paths = {Path(path): weight for path, weight in plan["weights"].items()}
    if len(paths) > 1:
        dataset: ShardDataset = ShardMixture(paths, until="first", **options)
    else:
        dataset = ShardDataset(next(iter(paths)), **options)
    batch_size = GLOBAL_BATCH // world_size
    return ShardLoader(
        dataset, batch_size, num_workers=workers, sample_keys=True, prefetch=2, **plan["loader"]
    )


def colour(picture: Any) -> Any:
    """A picture as 2 x 2 pixels of its first one's colour."""
    first = np.asarray(picture, np.float32)[0, 0]
    return np.broadcast_to(first[:, None, None], (3, 2, 2)).copy()


def main(argv: list[str]) -> int:
    """FOLDER RUN RANK WORLD_SIZE WORKERS: from the folder's state on, until the plan's end."""
    folder, run, rank, world_size, workers = Path(argv[0]), *map(int, argv[1:])
    plan = json.loads((folder / "plan.json").read_text())
    loader = loader_of(plan, rank, world_size, workers)
    state = folder / "state.json"
    if state.is_file():
        loader.load_state_dict(json.loads(state.read_text()))
    steps = np.memmap(folder / f"steps-{run}", np.int64, "r+", shape=(world_size,))
    chance = Random(f"{run}/{rank}")
    done = 0
    with open(folder / f"log-{run}-{rank}", "a") as log:
        while loader.epoch < plan["epochs"]:
            for batch in loader:
                done += 1
                _look_aside(loader, done, chance)
                at = loader.state_dict()
                line = {"keys": batch["keys"], "state": [at["epoch"], at["position"]]}
                log.write(json.dumps(line) + "\n")
                log.flush()
                steps[rank] = done
                while steps.min() < done:
                    time.sleep(0.0005)
                if done % SAVE_EVERY == 0 and rank == 0:
                    _write(state, json.dumps(at))
                if done % BREAK_EVERY == 0:
                    break
            if done % BREAK_EVERY == 0:
                loader.load_state_dict(loader.state_dict())
    return 0


def _look_aside(loader: ShardLoader, done: int, chance: Random) -> None:
    """A peek, a part of an evaluation, or a whole one: nothing of it is to be seen."""
    if done % PEEK_EVERY == 0:
        for _, _ in zip(range(chance.randrange(1, 4)), loader, strict=False):
            pass
    if done % EVALUATE_EVERY == 0:
        for n, _ in enumerate(loader.for_eval()):
            if n == chance.choice([1, 10**6]):
                break


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)
