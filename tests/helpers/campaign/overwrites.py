"""Some bytes of a file replaced: by noise, zeros, or bytes from elsewhere in the dataset."""

from __future__ import annotations

from random import Random

from campaign.flips import some_file
from campaign.reading import READERS, judge
from campaign.room import DATASETS, Room, put
from campaign.verdict import Verdict

KINDS = ("noise", "zeros", "ones", "bytes of the same file", "bytes of another file")


def case(room: Room, chance: Random, number: int) -> Verdict:
    """2 to 4,096 bytes at a random place."""
    packed = room.packed(chance.choice(list(DATASETS)))
    name = some_file(packed, chance)
    data = bytearray(packed.data[name])
    n = min(int(2 ** chance.uniform(1, 12)), len(data))
    begin = chance.randrange(len(data) - n + 1)
    kind = chance.choice(KINDS)
    other = packed.data[name if kind == "bytes of the same file" else some_file(packed, chance)]
    start = chance.randrange(max(1, len(other) - n + 1))
    new = {"noise": chance.randbytes(n), "zeros": bytes(n), "ones": b"\xff" * n}
    data[begin : begin + n] = new.get(kind, other[start : start + n].ljust(n, b"\0"))
    fault = f"{kind} over bytes {begin} to {begin + n} of {name}, {packed.name}"
    with room.copy(packed) as copy:
        put(copy / name, bytes(data))
        return judge(packed, copy, chance.choice(list(READERS)), [name], fault)
