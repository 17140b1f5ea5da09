"""Pictures that are damaged, lie about their size, or are of odd shapes."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from PIL import Image

from campaign.room import Room
from campaign.rows import damaged, judge_pack
from campaign.verdict import Verdict

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SHAPES = ((32, 24), (1, 1), (65_535, 1), (1, 65_535), (8_000, 1), (3_000, 2_000))
DAMAGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "none": lambda data, chance: data,
    "flip": lambda data, chance: damaged(data, "flip", chance),
    "flip in the header": lambda data, chance: damaged(data[:64], "flip", chance) + data[64:],
    "cut": lambda data, chance: damaged(data, "cut", chance),
    "noise": lambda data, chance: damaged(data, "noise", chance),
    "nothing": lambda data, chance: b"",
    "a page": lambda data, chance: b"<html><body>404</body></html>",
    "a size that lies": lambda data, chance: _lying(chance),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"image_size": 32, "image_fit": "pad"},
    {"image_size": 32, "image_fit": "crop"},
    {"image_size": 32, "image_fit": "resize"},
)


def case(room: Room, chance: Random, number: int) -> Verdict:
    """One of three pictures is bad: its row is kept or rejected, its neighbours are kept."""
    kind, shape = chance.choice(KINDS), chance.choice(SHAPES[:2] + SHAPES)
    damage = chance.choice(list(DAMAGES))
    options = chance.choice(OPTIONS)
    fault = f"{kind} of {shape}, damage: {damage}, options {options}"
    with room.scratch() as folder:
        for name, picture in {
            "0": _picture("PNG", (9, 9)),
            "1": DAMAGES[damage](_picture(kind, shape), chance),
            "2": _picture("JPEG", (9, 9)),
        }.items():
            (folder / name).write_bytes(picture)
        turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
        rows = [{"id": name, "image": name, "conversations": turns} for name in "012"]
        source = folder / "rows.json"
        source.write_text(json.dumps(rows))
        more = {"image_root": folder, "image_tokens": 4, **options}
        return judge_pack(folder, source, more, fault)


def _picture(kind: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    longest = {"WEBP": 16_383, "JPEG": 65_500}.get(kind, 65_535)
    size = min(size[0], longest), min(size[1], longest)
    Image.new("RGB", size, (200, 40, 7)).save(file, kind)
    return file.getvalue()


def _lying(chance: Random) -> bytes:
    """A PNG of one row of one pixel whose header, its checksum right, says something else."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    edges = [0, 1, 2, 4_000, 65_535, 2**20, 2**31 - 1, 2**32 - 1]
    depth, colours = chance.choice([1, 8, 16, 99]), chance.choice([0, 2, 3, 6, 99])
    header = struct.pack(
        ">IIBBBBB", chance.choice(edges), chance.choice(edges), depth, colours, 0, 0, 0
    )
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
