"""Files under another's name, gone, or something that is no file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from campaign.flips import some_file
from campaign.reading import READERS, judge
from campaign.room import DATASETS, Room, put
from campaign.verdict import Verdict


def _swap(a: Path, b: Path) -> None:
    os.rename(a, a.with_name("between"))
    os.rename(b, a)
    os.rename(a.with_name("between"), b)


def _link(a: Path, b: Path) -> None:
    a.unlink()
    a.symlink_to(b)


def _rename(a: Path, b: Path) -> None:
    a.rename(a.with_name(f"{a.name}.bak"))


def _becomes(make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def replace(a: Path, b: Path) -> None:
        a.unlink()
        make(a)

    return replace


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "swapped with": _swap,
    "overwritten by": lambda a, b: put(a, b.read_bytes()),
    "a link to": _link,
    "missing": lambda a, b: a.unlink(),
    "renamed": _rename,
    "empty": lambda a, b: put(a, b""),
    "a folder": _becomes(Path.mkdir),
    "a link to itself": _becomes(lambda a: a.symlink_to(a.name)),
    "a pipe": _becomes(os.mkfifo),
    "/dev/zero": _becomes(lambda a: a.symlink_to("/dev/zero")),
    "/dev/null": _becomes(lambda a: a.symlink_to("/dev/null")),
}


def case(room: Room, chance: Random, number: int) -> Verdict:
    """One file of the dataset, and sometimes one of another dataset of the same recipe."""
    packed = room.packed(chance.choice(list(DATASETS)))
    way = chance.choice(list(WAYS))
    is_foreign = way == "overwritten by" and chance.random() < 0.5
    a = some_file(packed, chance)
    others = [name for name in packed.files if name != a]
    alike = [name for name in packed.shards if name != a and a in packed.shards]
    b = a if is_foreign else chance.choice(alike or others)
    names = [a, b] if way == "swapped with" else [a]
    second = f" {b}" if way in ("swapped with", "overwritten by", "a link to") else ""
    fault = f"{a} is {way}{second}{' of another dataset' if is_foreign else ''}, {packed.name}"
    with room.copy(packed) as copy:
        other = room.packed(packed.name, seed=1).folder if is_foreign else copy
        if is_foreign and not (other / b).exists():
            b = room.packed(packed.name, seed=1).files[0]
        WAYS[way](copy / a, other / b)
        return judge(packed, copy, chance.choice(list(READERS)), names, fault)
