"""Files and folders that may not be read or written, odd names, and too few descriptors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from campaign.commands import Limits, judge_run, run
from campaign.room import DATASETS, Room, pack_words
from campaign.verdict import Verdict

COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "verify": lambda out, source: ["verify", str(out)],
    "inspect": lambda out, source: ["inspect", str(out), "--sample", "0"],
    "export": lambda out, source: ["export", str(out), str(out.parent / "hf"), "--to", "hf"],
    "trace": lambda out, source: _trace(out),
    "append": lambda out, source: ["append", str(out), str(source)],
    "repair": lambda out, source: ["repair", str(out), "--source", str(source)],
    "merge": lambda out, source: ["merge", str(out), str(out), "--out", str(out.parent / "m")],
    "pack": lambda out, source: pack_words(source, out.parent / "new", {}),
}
TAKEN = ("a file", "the folder", "writing the folder", "the source", "where it goes")
ODD = ("x" * 300, "caf\udce9", "a\nb", "-x", "manifest.json", "a\0b", " ", "ä" * 100)
"""Names, the second as Python writes a byte that is no UTF-8."""


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Any command, as a user without the right, with an odd name, or with few descriptors."""
    packed = room.packed(chance.choice(list(DATASETS)))
    name, way = chance.choice(list(COMMANDS)), chance.choice(["rights", "names", "descriptors"])
    with room.scratch() as folder:
        for path in (room.folder, folder):
            path.chmod(0o755)
        place = folder / "work"
        place.mkdir()
        place.chmod(0o777)
        out, source = place / "set", place / "more.json"
        shutil.copytree(packed.folder, out)
        shutil.copy(room.packed("text", seed=1).source, source)
        limits, said = Limits(), way
        if way == "rights":
            said = _take(chance, out, source)
            limits = Limits(without_rights=os.geteuid() == 0)
        elif way == "descriptors":
            n = chance.choice([8, 10, 12, 16, 24, 40])
            limits, said = Limits(n_files=n), f"{n} descriptors"
        argv = COMMANDS[name](out, source)
        if way == "names":
            argv, said = _odd(argv, chance, place)
        ran = run(argv, folder / "log", limits, seconds=30)
        fault = f"{name} of {packed.name}, {said}"
        return judge_run(ran, fault)


def _take(chance: Random, out: Path, source: Path) -> str:
    """Take a right away from one thing; what."""
    taken = chance.choice(TAKEN)
    victim = {"the folder": out, "writing the folder": out, "the source": source}.get(taken)
    if taken == "where it goes":
        victim = out.parent
    if victim is None:
        victim = chance.choice(sorted(p for p in out.rglob("*")))
    for path in (out, *out.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    source.chmod(0o644)
    writing = taken in ("writing the folder", "where it goes")
    victim.chmod(0o555 if writing else 0)
    return f"no right to {taken} {victim.name}"


def _odd(argv: list[str], chance: Random, place: Path) -> tuple[list[str], str]:
    """The command with one of its paths under an odd name, which exists when it can."""
    at = chance.choice([i for i, word in enumerate(argv) if word.startswith(str(place))])
    odd = chance.choice(ODD)
    old, new = Path(argv[at]), place / odd
    try:
        if old.exists():
            old.rename(new)
    except (OSError, ValueError):
        pass  # no file can have such a name
    changed = [str(new) if word == argv[at] else word for word in argv]
    return changed, f"{old.name} is called {odd[:20]!r}"


def _trace(out: Path) -> list[str]:
    return ["trace", str(out), "--step", "0", "--world-size", "1", "--batch-size", "2"]
