"""Parquet files, Arrow files and folders of `datasets` that are damaged."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from random import Random

from campaign.hostile import HOSTILE, text_of
from campaign.room import Room
from campaign.rows import damaged, judge_pack
from campaign.verdict import Verdict

with suppress(ImportError):  # this kind is skipped then
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

KINDS = ("parquet", "parquet", "arrow folder", "state", "text")
N_ROWS = 200


def case(room: Room, chance: Random, number: int) -> Verdict:
    """Bytes of the table, its folder's state.json, or a text that is not UTF-8."""
    kind = chance.choice(KINDS)
    damage = chance.choice(["flip", "cut", "noise", "noise"])
    fault = f"{kind}, {damage}, case {number}"
    with room.scratch() as folder:
        if kind in ("parquet", "text"):
            source = _parquet(folder / "rows.parquet", is_text=kind == "text")
            if kind == "parquet":
                source.write_bytes(damaged(source.read_bytes(), damage, chance))
        else:
            source = _saved(folder / "saved")
            victim = source / ("state.json" if kind == "state" else "data-00000-of-00001.arrow")
            victim.write_bytes(damaged(victim.read_bytes(), damage, chance))
            if kind == "state" and chance.random() < 0.6:
                victim.write_bytes(text_of(_state(chance)))
        return judge_pack(folder, source, {}, fault)


def _table() -> pa.Table:
    questions = [f"say {i}" for i in range(N_ROWS)]
    return pa.table({"instruction": questions, "output": [f"answer {q}" for q in questions]})


def _parquet(path: Path, *, is_text: bool) -> Path:
    table = _table()
    if is_text:
        offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
        bad = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"\xff\xfea")])
        table = pa.table({"instruction": bad, "output": ["a", "b", "c"]})
    pq.write_table(table, path, row_group_size=50)
    return path


def _saved(folder: Path) -> Path:
    """What `datasets.save_to_disk` writes, as far as it is read."""
    folder.mkdir()
    table, name = _table(), "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    state = {"_data_files": [{"filename": name}], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def _state(chance: Random) -> object:
    """A state.json that names something else than the data, or that is none."""
    value = chance.choice(HOSTILE)
    return chance.choice(
        [
            value,
            {"_data_files": value},
            {"_data_files": [value]},
            {"_data_files": [{"filename": value}]},
        ]
    )
