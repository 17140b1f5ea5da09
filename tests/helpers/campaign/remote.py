"""Datasets behind servers and networks that fail, and copies in the cache that are damaged."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random

from servers import Faults, file_server, proxy, some

from campaign.reading import Digests, judge_call, read_loader
from campaign.room import DATASETS, Room, put
from campaign.rows import damaged
from campaign.verdict import Verdict

FAULTS = ("error", "reset", "cut", "short", "flip")


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Some requests fail, always or often; between two epochs copies may be damaged."""
    packed = room.packed(chance.choice(list(DATASETS)))
    share, only = chance.choice([0.1, 0.3, 1.0]), chance.choice(["", "shard-", "manifest"])
    kinds = chance.sample(FAULTS, chance.randrange(1, len(FAULTS) + 1))
    harm = chance.choice(["none", "damage", "remove", "clear"])
    fault = f"{kinds} in {share:.0%} of requests of {only or 'all'}, cache: {harm}, {packed.name}"
    os.environ["SHARDKIT_TRIES"] = "3"
    faults = Faults(some(share, *kinds, seed=chance.randrange(2**32), only=only))
    with (
        room.scratch() as folder,
        file_server(packed.folder.parent) as server,
        proxy(server, faults) as url,
    ):
        threads = chance.choice([0, 2])

        def twice() -> Digests:
            options = {"cache_dir": folder / "cache", "shuffle": False, "prefetch": threads}
            first = read_loader(f"{url}/set", **options)
            _harm(folder / "cache", harm, chance)
            return first + read_loader(f"{url}/set", **options)

        golden = packed.golden["loader"] * 2
        return judge_call(twice, golden, ["/set", "manifest.json"], fault)


def _harm(cache: Path, harm: str, chance: Random) -> None:
    if harm == "clear":
        shutil.rmtree(cache, ignore_errors=True)
        return
    copies = sorted(cache.glob("*shard*"))
    if not copies or harm == "none":
        return
    victim = chance.choice(copies)
    with suppress(FileNotFoundError):
        data = victim.read_bytes()
        victim.unlink()
        if harm == "damage":
            put(victim, damaged(data, chance.choice(["flip", "cut", "noise"]), chance))
