"""One bit in each byte of manifest.json: reading refuses it, or gives the same; verify finds it."""

from __future__ import annotations

from random import Random

from campaign.reading import READERS, judge
from campaign.room import DATASETS, Room, put
from campaign.verdict import Verdict

NAME = "manifest.json"


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Case k turns a bit of byte k over, through the manifests of all datasets and again."""
    names = list(DATASETS)
    while True:
        for name in names:
            packed = room.packed(name)
            data = bytearray(packed.data[NAME])
            if number < len(data):
                break
            number -= len(data)
        else:
            continue
        break
    bit = chance.randrange(8)
    data[number] ^= 1 << bit
    fault = f"bit {bit} of byte {number} of {NAME}, {packed.name}"
    with room.copy(packed) as copy:
        put(copy / NAME, bytes(data))
        return judge(packed, copy, chance.choice(list(READERS)), [NAME], fault)
