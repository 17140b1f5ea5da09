"""A file that is shorter, longer, or shifted."""

from __future__ import annotations

from random import Random

from campaign.flips import some_file
from campaign.reading import READERS, judge
from campaign.room import DATASETS, Room, put
from campaign.verdict import Verdict

KINDS = ("cut", "cut at a block", "extended", "bytes put in", "bytes taken out", "twice")


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Cut, extended by zeros or noise, or bytes inserted or removed in the middle."""
    packed = room.packed(chance.choice(list(DATASETS)))
    name = some_file(packed, chance)
    data = packed.data[name]
    kind = chance.choice(KINDS)
    at, n = chance.randrange(len(data)), chance.choice([1, 2, 511, 512, 513, 1024, 4096])
    more = chance.choice([bytes(n), chance.randbytes(n), data[:n]])
    new = {
        "cut": data[:at],
        "cut at a block": data[: at // 512 * 512],
        "extended": data + more,
        "bytes put in": data[:at] + more + data[at:],
        "bytes taken out": data[:at] + data[at + n :],
        "twice": data + data,
    }[kind]
    fault = f"{kind} at {at} by {n}: {name}, {packed.name}"
    with room.copy(packed) as copy:
        put(copy / name, new)
        return judge(packed, copy, chance.choice(list(READERS)), [name], fault)
