"""Commands that are killed and run again: the files must come out as without the kills."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

from kills import workers_of
from records import digests

from campaign.commands import Ran, run, start
from campaign.reading import READERS, Digests
from campaign.room import DATASETS, Packed, Room, pack_words, remove
from campaign.verdict import Outcome, Verdict
from campaign.zygote import SMALL_RANGES
from shardkit.errors import ShardkitError

SECONDS = 120.0
"""A command that is not killed is done after a second."""


def _pack(room: Room, packed: Packed, out: Path) -> list[str]:
    return pack_words(packed.source, out, packed.options)


def _pack_scanned(room: Room, packed: Packed, out: Path) -> list[str]:
    """Three files, an array, lines and compressed lines, that workers scan in ranges of 3 kB."""
    rows = json.loads(packed.source.read_text())
    third = len(rows) // 3
    lines = [json.dumps(row) + "\n" for row in rows]
    files = [out.parent / name for name in ("a.json", "b.jsonl", "c.jsonl.gz")]
    files[0].write_text(json.dumps(rows[:third], indent=1))
    files[1].write_text("".join(lines[third : 2 * third]))
    files[2].write_bytes(gzip.compress("".join(lines[2 * third :]).encode(), mtime=0))
    words = pack_words(packed.source, out, packed.options)
    return [SMALL_RANGES, "pack", *map(str, files), *words[2:], "--workers", "2"]


def _pack_whole(room: Room, packed: Packed, out: Path) -> list[str]:
    """Packs over the whole input, in sections of 4 kB that two workers write."""
    more = {"packing": "best-fit", "pack_scope": "all", "shard_size": 4096}
    words = pack_words(packed.source, out, {**packed.options, **more})
    return [*words, "--workers", "2"]


def _append(room: Room, packed: Packed, out: Path) -> list[str]:
    shutil.copytree(packed.folder, out)
    more = room.packed(packed.name, seed=1)
    words = ["append", str(out), str(more.source)]
    if "image_root" in more.options:
        words += ["--image-root", str(more.options["image_root"])]
    return words


def _repair(room: Room, packed: Packed, out: Path) -> list[str]:
    shutil.copytree(packed.folder, out)
    (out / packed.shards[0]).unlink()
    (out / packed.shards[-1]).write_bytes(b"damaged")
    words = ["repair", str(out), "--source", str(packed.source)]
    if "image_root" in packed.options:
        words += ["--image-root", str(packed.options["image_root"])]
    return words


def _merge(room: Room, packed: Packed, out: Path) -> list[str]:
    both = (packed.folder, room.packed(packed.name, seed=1).folder)
    return ["merge", *map(str, both), "--out", str(out)]


def _merge_copy(room: Room, packed: Packed, out: Path) -> list[str]:
    return [*_merge(room, packed, out), "--copy"]


def _repack(room: Room, packed: Packed, out: Path) -> list[str]:
    more = ["--max-length", "128", "--shuffle-seed", "5", "--shard-size", "20000"]
    packing = "concat" if packed.options.get("packing") == "best-fit" else "best-fit"
    return ["repack", str(packed.folder), "--out", str(out), "--packing", packing, *more]


def _repack_two(room: Room, packed: Packed, out: Path) -> list[str]:
    words, other = _repack(room, packed, out), room.packed(packed.name, seed=1).folder
    return [*words[:2], str(other), *words[2:], "--compression", "zstd"]


TRIALS: dict[str, Callable[[Room, Packed, Path], list[str]]] = {
    "pack": _pack,
    "pack that scans in workers": _pack_scanned,
    "pack over the whole input": _pack_whole,
    "append": _append,
    "repair": _repair,
    "merge": _merge,
    "merge by copies": _merge_copy,
    "repack": _repack,
    "repack of two": _repack_two,
}
"""By name: what makes the folder ready and gives the command."""


def case(room: Room, chance: Random, number: int) -> Verdict:
    """One to three kills of a command at random moments, then its end."""
    name = list(TRIALS)[number % len(TRIALS)]
    packed = room.packed(chance.choice(list(DATASETS)))
    whole, goldens, took = _golden(room, name, packed)
    with room.scratch() as folder:
        argv, out, said = TRIALS[name](room, packed, folder / "set"), folder / "set", []
        if name == "pack" and chance.random() < 0.15:
            argv += ["--workers", "2"]
            took += 2.0
        fault = f"{name} of {packed.name}, killed after"
        for _ in range(chance.choice([1, 1, 2, 3])):
            said.append(_kill(argv, chance.uniform(0, 1.1 * took), chance, folder / "log"))
            found = _read(out) if name == "append" else None
            if found not in (*goldens, None):
                return Verdict(Outcome.SILENT, f"{fault} {said}", "neither the old data nor new")
        ran = run(argv, folder / "log", seconds=SECONDS)
        n_kills = sum(not one.endswith("(done)") for one in said)
        verdict = judge_end(ran, out, whole, f"{fault} {', '.join(said)}")
        return replace(verdict, counts={f"kills of {name}": n_kills})


def judge_end(ran: Ran, out: Path, whole: dict[str, str], fault: str) -> Verdict:
    """What the command that may end leaves: the files as they should be, and nothing else."""
    if ran.status != 0:
        outcome = Outcome.HANG if ran.status is None else Outcome.FOREIGN
        return Verdict(outcome, fault, f"status {ran.status}: {ran.said[-400:]}")
    found = digests(out)
    if found == whole:
        return Verdict(Outcome.SAME, fault)
    differing = sorted({name for name, _ in whole.items() ^ found.items()})
    return Verdict(Outcome.SILENT, fault, f"other files: {differing[:5]}")


_known: dict[tuple[Path, str, str], tuple[dict[str, str], list[Digests], float]] = {}


def _golden(room: Room, name: str, packed: Packed) -> tuple[dict[str, str], list[Digests], float]:
    """Of a command that nobody kills: its files, the data before and after it, and its time."""
    key = room.folder, name, packed.name
    if key not in _known:
        folder = room.folder / "golden" / f"{name}-{packed.name}"
        remove(folder)
        folder.mkdir(parents=True)
        argv = TRIALS[name](room, packed, folder / "set")
        run(["--version"], folder / "log", seconds=SECONDS)
        began = time.monotonic()
        ran = run(argv, folder / "log", seconds=SECONDS)
        took = time.monotonic() - began
        if ran.status != 0:
            raise RuntimeError(f"{argv} fails without a kill: {ran.said}")
        read = READERS["table"]
        both = [read(packed.folder), read(folder / "set")]
        _known[key] = digests(folder / "set"), both, took
    return _known[key]


def _read(out: Path) -> Digests:
    try:
        return READERS["table"](out)
    except ShardkitError as err:
        return [str(err)]


def _kill(argv: list[str], seconds: float, chance: Random, log: Path) -> str:
    """Start a command, and kill it and its workers, it alone, or a worker of it."""
    command = start(argv, log)
    if command.wait(seconds) is not None:
        return f"{seconds:.3f} s (done)"
    workers, victim = workers_of(command.pid), "all"
    if workers and chance.random() < 0.3:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
        command.wait(SECONDS)
        victim = "worker"
    elif workers and chance.random() < 0.3:
        command.kill(alone=True)
        victim = "parent"
    command.kill()
    return f"{seconds:.3f} s ({victim})"
