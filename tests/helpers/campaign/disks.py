"""Commands on a disk that becomes full, and again when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from records import digests

from campaign.commands import in_process, judge_run
from campaign.kills import TRIALS
from campaign.room import DATASETS, Room
from campaign.verdict import Outcome, Verdict


def case(room: Room, chance: Random, number: int) -> Verdict:
    """A small file system with room for a part of what a command writes.

    The command succeeds, or says that the disk is full and leaves what was there; with room, the
    same command gives the same files as anywhere.
    """
    name = list(TRIALS)[number % len(TRIALS)]
    packed = room.packed(chance.choice(list(DATASETS)))
    with room.scratch() as folder, _small_disk(folder / "disk") as disk:
        whole = folder / "whole"
        in_process(TRIALS[name](room, packed, whole))
        argv, out = TRIALS[name](room, packed, disk / "set"), disk / "set"
        before = digests(out) if out.exists() else {}
        n_free = chance.choice([0, int(4096 * 2 ** chance.uniform(0, 6))])
        filler = _fill(disk, n_free)
        fault = f"{name} of {packed.name}, {n_free} bytes free"
        full = judge_run(in_process(argv), f"{fault}, on a full disk", names=["full", "space"])
        if full.is_bad:
            return full
        kept = {k: v for k, v in digests(out).items() if k in before} if out.exists() else {}
        if full.outcome != Outcome.SAME and name == "append" and kept != before:
            return Verdict(Outcome.SILENT, fault, "the old dataset is not as it was")
        filler.unlink()
        again = judge_run(in_process(argv), f"{fault}, then room")
        if again.outcome != Outcome.SAME:
            return Verdict(Outcome.FOREIGN, again.fault, f"not gone on: {again.seen}")
        if digests(out) != digests(whole):
            return Verdict(Outcome.SILENT, fault, "other files than on another disk")
        return full


@cache
def why_not() -> str | None:
    """Why no small disk can be had; None when it can."""
    if os.geteuid() != 0:
        return "a small file system can be mounted by root alone"
    with TemporaryDirectory() as folder:
        mounted = _mount(Path(folder))
        if mounted.returncode:
            return f"mount: {mounted.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return None


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    _mount(folder).check_returncode()
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _fill(disk: Path, n_free: int) -> Path:
    """A file that takes all but `n_free` bytes."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    n_bytes = max(0, space.f_bavail * space.f_frsize - n_free)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, n_bytes))
    return filler
