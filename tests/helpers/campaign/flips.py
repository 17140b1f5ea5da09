"""One bit of one file turned over."""

from __future__ import annotations

from random import Random

from campaign.reading import READERS, judge
from campaign.room import DATASETS, Packed, Room, put
from campaign.verdict import Verdict


def case(room: Room, chance: Random, number: int) -> Verdict:
    """A bit anywhere: in shards mostly, in manifest, rejects and tokenizer else."""
    packed = room.packed(chance.choice(list(DATASETS)))
    name = some_file(packed, chance)
    data = bytearray(packed.data[name])
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    reader = chance.choice(list(READERS))
    fault = f"bit {bit % 8} of byte {bit // 8} of {name}, {packed.name}"
    with room.copy(packed) as copy:
        put(copy / name, bytes(data))
        return judge(packed, copy, reader, [name], fault)


def some_file(packed: Packed, chance: Random) -> str:
    """A file with bytes in it: a shard seven times of ten."""
    others = [name for name in packed.files if name not in packed.shards and packed.data[name]]
    return chance.choice(packed.shards if chance.random() < 0.7 else others)
