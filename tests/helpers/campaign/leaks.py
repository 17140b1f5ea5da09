"""Epochs upon epochs, some broken off: descriptors, threads, maps and memory stay as they are."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

from campaign.room import DATASETS, Room
from campaign.verdict import Outcome, Verdict
from shardkit import ShardLoader

with suppress(ImportError):  # this kind is skipped then
    import psutil

N_EPOCHS = 20
GROWTH_BYTES = 24 << 20
"""Of resident memory in a case: pools of the allocator, not a leak that goes on."""


class Held(NamedTuple):
    """What this process holds."""

    n_files: int
    n_threads: int
    n_maps: int
    """Of shards."""
    n_children: int
    n_bytes: int


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Twenty epochs of one loader after two to warm up; every third is broken off."""
    packed = room.packed(chance.choice(list(DATASETS)))
    prefetch = chance.choice([0, 2, 16])
    _epochs(packed.folder, 2, prefetch)
    before = held(packed.folder)
    _epochs(packed.folder, N_EPOCHS, prefetch)
    after = held(packed.folder)
    fault = f"{N_EPOCHS} epochs of {packed.name}, prefetch {prefetch}"
    grown = [name for name in Held._fields[:4] if getattr(after, name) > getattr(before, name)]
    if grown or after.n_bytes > before.n_bytes + GROWTH_BYTES:
        return Verdict(Outcome.SILENT, fault, f"before {before}, after {after}")
    return Verdict(Outcome.SAME, fault)


def held(folder: Path) -> Held:
    """What the process holds now, with the maps of files below a folder."""
    gc.collect()
    process = psutil.Process()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return Held(
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        sum(str(folder) in line for line in maps),
        len(process.children(recursive=True)),
        process.memory_info().rss,
    )


def _epochs(folder: Path, n: int, prefetch: int) -> None:
    for epoch in range(n):
        loader = ShardLoader(folder, 5, rank=0, world_size=1, prefetch=prefetch)
        loader.set_epoch(epoch)
        for step, _ in enumerate(loader):
            if epoch % 3 == 0 and step == 2:
                break
