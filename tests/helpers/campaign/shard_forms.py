"""Forged shards: footer, index or segments say something else, and every hash is right."""

from __future__ import annotations

import hashlib
import json
import struct
from random import Random

import xxhash

from campaign.commands import in_process, judge_run
from campaign.hostile import change, text_of
from campaign.manifest_bits import NAME
from campaign.manifest_forms import forge, forgiven
from campaign.reading import READERS
from campaign.room import Room, put
from campaign.verdict import Verdict, worst

FOOTER, TAIL = 512, 1536
"""Bytes of the footer block, and from its start to the end of the file."""
ODD_NUMBERS = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 512, 2**64 - 1)
MEMBERS = ("index", "segments", "manifest")


def case(room: Room, chance: Random, number: int) -> Verdict:
    """A field of the footer, or some bytes of what it names: only no traceback is asked for."""
    packed = room.packed(chance.choice(["text", "best-fit", "llava"]))
    name = chance.choice(packed.shards)
    data = bytearray(packed.data[name])
    footer = json.loads(data[-TAIL : -TAIL + FOOTER])
    members = [member for member in MEMBERS if footer.get(member)]
    if chance.random() < 0.3:
        del footer["xxh3"]
        footer, said = change(footer, chance)
    else:
        member = chance.choice(members)
        begin, size = map(int, footer[member][:2])
        said = f"{member}: {_damage(data, begin, size, chance)}"
        footer[member][2] = xxhash.xxh3_64_hexdigest(bytes(data[begin : begin + size]))
    block = _block(footer)
    data[-TAIL : -TAIL + FOOTER] = block
    manifest = json.loads(packed.data[NAME])
    entry = next(entry for entry in manifest["shards"] if entry["name"] == name)
    entry["footer"] = xxhash.xxh3_64_hexdigest(block)
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    fault = f"forged {name}, {said}, {packed.name}"
    with room.copy(packed) as copy:
        put(copy / name, bytes(data))
        put(copy / NAME, forge(manifest))
        reader = chance.choice(list(READERS))
        read = forgiven(lambda: READERS[reader](copy), packed.golden[reader], fault)
        argv = chance.choice([["verify"], ["inspect"], ["inspect", "--sample", "0"]])
        argv = [argv[0], str(copy), *argv[1:]]
        return worst(read, judge_run(in_process(argv), f"{fault}, {argv[0]}"))


def _damage(data: bytearray, begin: int, size: int, chance: Random) -> str:
    """Change a number or some bytes of a member in place; what was done."""
    at = begin + chance.randrange(size)
    if chance.random() < 0.5:
        at = begin + max(0, (at - begin) // 8 * 8)
        value = chance.choice(ODD_NUMBERS)
        new = struct.pack("<Q", value)[: begin + size - at]
        data[at : at + len(new)] = new
        return f"{value} at byte {at - begin}"
    n = min(chance.randrange(1, 9), begin + size - at)
    data[at : at + n] = chance.randbytes(n)
    return f"noise at byte {at - begin}"


def _block(footer: dict[str, object]) -> bytes:
    """The footer with its own hash, in its fixed size."""
    footer.pop("xxh3", None)
    body = text_of(footer).replace(b"\n", b"").rstrip(b"}")
    text = body + b',"xxh3":"' + xxhash.xxh3_64_hexdigest(body).encode() + b'"}'
    return text[: FOOTER - 1].ljust(FOOTER - 1) + b"\n"
