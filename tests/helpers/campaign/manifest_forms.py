"""manifest.json changed by its structure: as it is, or with all its hashes made right again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from random import Random
from typing import Any

from campaign.commands import in_process, judge_run
from campaign.hostile import change, text_of
from campaign.manifest_bits import NAME
from campaign.reading import READERS, Digests, judge, judge_call
from campaign.room import DATASETS, Room, put
from campaign.verdict import Outcome, Verdict, worst
from shardkit.format.canonical import sha256_of

TRACE = ["trace", "--step", "0", "--world-size", "1", "--batch-size", "2"]


def case(room: Room, chance: Random, number: int) -> Verdict:
    """One to three changes; of every second case all hashes are right, which makes a forgery.

    A forged dataset may hold other data, or be good: it must only be no traceback.
    """
    packed = room.packed(chance.choice(list(DATASETS)))
    tree = json.loads(packed.data[NAME])
    said = []
    for _ in range(chance.choice([1, 1, 2, 3])):
        tree, what = change(tree, chance)
        said.append(what)
    is_forged = number % 2 == 1
    data = forge(tree) if is_forged else text_of(tree)
    fault = f"{'forged ' if is_forged else ''}{NAME} {'; '.join(said)}, {packed.name}"
    with room.copy(packed) as copy:
        put(copy / NAME, data)
        reader = chance.choice(list(READERS))
        if not is_forged:
            return judge(packed, copy, reader, [NAME], fault)
        read = forgiven(lambda: READERS[reader](copy), packed.golden[reader], fault)
        commands = [["verify"], ["inspect"], ["inspect", "--sample", "0"], TRACE]
        argv = [*chance.choice(commands)]
        argv.insert(1, str(copy))
        return worst(read, judge_run(in_process(argv), f"{fault}, {argv[0]}"))


def forgiven(call: Callable[[], Digests], golden: Digests, fault: str) -> Verdict:
    """What a call does with a forged dataset, which may hold other data."""
    verdict = judge_call(call, golden, [""], fault)
    if verdict.outcome == Outcome.SILENT:
        return Verdict(Outcome.SAME, fault, "other data, as the forger wanted")
    return verdict


def forge(tree: dict[str, Any]) -> bytes:
    """The manifest with hashes that agree with what it says."""
    try:
        tree["fingerprint"] = sha256_of(tree["identity"])
        tree["content"] = sha256_of([[s["n_samples"], s["footer"]] for s in tree["shards"]])
    except (KeyError, TypeError, ValueError, RecursionError):
        pass  # there is nothing to hash any more
    tree.pop("sha256", None)
    return sealed(text_of(tree))


def sealed(data: bytes) -> bytes:
    """The bytes with the hash of the manifest over itself as their last field."""
    body = data.removesuffix(b"\n}\n")
    return body + b',\n"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
