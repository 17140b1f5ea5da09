"""Rows that are not what a source file should hold: JSON, JSON lines, and packed archives of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import zstandard
from records import alpaca_rows

from campaign.commands import in_process, judge_run
from campaign.hostile import change, text_of
from campaign.room import Room, pack_words
from campaign.verdict import Outcome, Verdict

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAPES: dict[str, Callable[[], list[Any]]] = {
    "alpaca": lambda: alpaca_rows(12),
    "messages": lambda: [{"messages": TURNS} for _ in range(6)],
    "sharegpt": lambda: [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
        for _ in range(6)
    ],
    "text": lambda: [{"text": f"a line of text, {i}"} for i in range(6)],
}
DAMAGES = ("structure", "structure", "flip", "cut", "noise")


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Packed or refused without a traceback; what is packed is whole and accounts for every row."""
    shape = chance.choice(list(SHAPES))
    rows = json.loads(json.dumps(SHAPES[shape]()))
    damage = chance.choice(DAMAGES)
    said = damage
    if damage == "structure":
        for _ in range(chance.choice([1, 2, 5])):
            rows, said = change(rows, chance)
    is_lines = chance.random() < 0.5
    data = b"\n".join(map(text_of_row, rows)) if is_lines else text_of(rows)
    ending = chance.choice(["", "", ".gz", ".zst"])
    if damage != "structure":
        inside = chance.random() < 0.5
        data = _packed(damaged(data, damage, chance), ending) if inside else data
        data = data if inside else damaged(_packed(data, ending), damage, chance)
    else:
        data = _packed(data, ending)
    name = f"rows.json{'l' if is_lines else ''}{ending}"
    with room.scratch() as folder:
        (folder / name).write_bytes(data)
        return judge_pack(folder, folder / name, {}, f"{name} of {shape}, {said}")


def judge_pack(folder: Path, source: Path, options: dict[str, Any], fault: str) -> Verdict:
    """Pack a source, in this process; a result must be called good by `verify`."""
    out = folder / "out"
    words = pack_words(source, out, {"max_rejects": 1_000_000, **options})
    packed = judge_run(in_process(words), f"{fault}, packed", names=[source.name])
    if packed.outcome != Outcome.SAME or not (out / "manifest.json").exists():
        return packed
    verified = judge_run(in_process(["verify", str(out)]), f"{fault}, verified")
    if verified.outcome == Outcome.REFUSED:
        return Verdict(Outcome.SILENT, fault, f"packed, but verify: {verified.seen}")
    return verified


def damaged(data: bytes, damage: str, chance: Random) -> bytes:
    """The bytes with a bit turned over, cut, or with noise in them."""
    new = bytearray(data)
    at = chance.randrange(len(new))
    if damage == "flip":
        new[at] ^= 1 << chance.randrange(8)
    elif damage == "cut":
        del new[at:]
    else:
        new[at : at + 8] = chance.randbytes(len(new[at : at + 8]))
    return bytes(new)


def text_of_row(row: Any) -> bytes:
    """One line."""
    return text_of([row]).strip()[1:-1].replace(b"\n", b" ")


def _packed(data: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(data, mtime=0)
    return zstandard.ZstdCompressor().compress(data) if ending == ".zst" else data
