"""Rows of Parquet and Arrow files: Arrow's own types, pictures in cells, and damage."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from records import pack_small

from shardkit.conversation import Conversation, Reject
from shardkit.errors import ShardkitError
from shardkit.format.shard import Shard
from shardkit.sources import ReadOptions, Unread, scan, source_named
from shardkit.sources.rows import MAX_ROW_BYTES, read_rows

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def call(name: str, arguments: Any) -> dict[str, Any]:
    """A call as OpenAI writes it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def chat(name: str, arguments: Any) -> dict[str, Any]:
    """A row with a tool and a call of it."""
    return {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "", "tool_calls": [call(name, arguments)]},
            {"role": "tool", "content": "R"},
            {"role": "assistant", "content": "A"},
        ],
        "tools": [call(name, None)],
    }


ROWS = [chat("weather", {"city": "Oslo"}), chat("quote", {"symbol": "X"})]


def read_file(path: Path) -> tuple[list[Any], dict[str, int]]:
    """What the rows of a file become, and what nobody read."""
    found = scan(path, name=path.name, spool=path.with_suffix(".spool"))
    unread = Unread()
    rows = pytest.importorskip("numpy").arange(found.n_rows)
    read = source_named("chat").read_rows(found, rows, ReadOptions(), unread)
    return read, dict(unread)


def test_members_that_arrow_made_up_are_no_words_of_the_model(tmp_path: Path) -> None:
    """Structs of a column get each other's members as null: those of tools and calls are left
    out and counted; the conversations are those of the same rows as JSONL."""
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    found, unread = read_file(path)
    (calls,) = {len(row.messages[1].tool_calls) for row in found}
    assert calls == 1
    arguments = [row.messages[1].tool_calls[0]["function"]["arguments"] for row in found]
    assert arguments == [{"city": "Oslo"}, {"symbol": "X"}]
    assert sum(n for key, n in unread.items() if "arguments" in key) == 4


def test_arrows_maps_are_objects(tmp_path: Path) -> None:
    """Arguments as a map column of string to string, which Python sees as pairs."""
    inner = pyarrow.struct({"name": "string", "arguments": pyarrow.map_("string", "string")})
    turn = {"role": "string", "content": "string", "tool_calls": pyarrow.list_(inner)}
    kind = pyarrow.list_(pyarrow.struct(turn))
    messages = [dict(turn) for turn in ROWS[0]["messages"]]
    messages[1]["tool_calls"] = [{"name": "weather", "arguments": [("city", "Oslo")]}]
    path = tmp_path / "rows.parquet"
    column = pyarrow.array([messages], kind)
    parquet.write_table(pyarrow.table([column], ["messages"]), path)
    (found,), _ = read_file(path)
    assert found.messages[1].tool_calls == ({"name": "weather", "arguments": {"city": "Oslo"}},)


def test_parts_without_a_type_are_what_they_hold(tmp_path: Path) -> None:
    """Arrow gives every part the keys of all parts."""
    parts = [{"text": None, "image": "a.png"}, {"text": "Q", "image": None}]
    answer = [{"text": "A", "image": None}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": talk}]), path)
    (found,), _ = read_file(path)
    assert [message.text for message in found.messages] == ["<image>Q", "A"]
    assert found.images == ("a.png",)


@pytest.mark.parametrize("whole", [True, False])
def test_arrows_json_type_is_decoded(tmp_path: Path, whole: bool) -> None:
    """Messages, arguments and tools as `arrow.json` columns are the objects that they spell."""
    if not hasattr(pyarrow, "json_"):
        pytest.skip("this pyarrow has no JSON type")
    kind = pyarrow.json_(pyarrow.string())
    texts = [json.dumps(row["messages"] if whole else row["tools"]) for row in ROWS]
    column = pyarrow.ExtensionArray.from_storage(kind, pyarrow.array(texts))
    other = "tools" if whole else "messages"
    plain = [
        json.loads(json.dumps(row[other]))
        if whole
        else [{"role": one["role"], "content": one["content"]} for one in row["messages"]]
        for row in ROWS
    ]
    names = ["messages", "tools"] if whole else ["tools", "messages"]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table([column, pyarrow.array(plain)], names), path)
    found, _ = read_file(path)
    assert [row.messages[-1].text for row in found] == ["A", "A"]
    assert [row.tools[0]["function"]["name"] for row in found] == ["weather", "quote"]
    if whole:
        assert found[0].messages[1].tool_calls == (call("weather", {"city": "Oslo"}),)


def test_arrows_json_is_as_deep_as_that_of_a_line(tmp_path: Path) -> None:
    """A cell that is nested too deep is rejected, as a row of JSONL is; NaN is read."""
    if not hasattr(pyarrow, "json_"):
        pytest.skip("this pyarrow has no JSON type")
    texts = ["[" * 257 + "]" * 257, "[" * 256 + "]" * 256, "[NaN]"]
    kind = pyarrow.json_(pyarrow.string())
    column = pyarrow.ExtensionArray.from_storage(kind, pyarrow.array(texts))
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table([column], ["tools"]), path)
    deep, kept, constant = read_rows(scan(path, name="r", spool=tmp_path / "spool"), 0, 3)
    assert isinstance(deep, Reject)
    assert "nested deeper than 256 levels" in deep.detail
    assert repr(kept) == repr({"tools": json.loads(texts[1])})
    assert repr(constant) == repr({"tools": [float("nan")]})


def picture(colour: str) -> bytes:
    """A small PNG."""
    out = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, "PNG")
    return out.getvalue()


def test_the_bytes_of_a_cell_win_over_a_path(tmp_path: Path) -> None:
    """A file of that name below --image-root is not read; without --image-root it works too."""
    Image.new("RGB", (4, 4), "red").save(tmp_path / "1.png")
    turns = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "Blue."}]
    rows = [
        {"image": {"bytes": picture("blue"), "path": name}, "conversations": turns}
        for name in ("1.png", None)
    ]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for root in (tmp_path, None):
        manifest = pack_small(path, tmp_path / f"out{root is None}", image_root=root)
        assert manifest.n_images == 2
        shard = Shard.open(tmp_path / f"out{root is None}" / manifest.shards[0].name)
        assert [bytes(shard.images(i)[0]) for i in range(2)] == [picture("blue")] * 2
        shard.close()


def large(path: Path) -> Path:
    """A Parquet file of several row groups."""
    rows = [{"instruction": f"I{i}", "output": "word " * 20} for i in range(400)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    return path


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    """Eight bytes overwritten anywhere: the file is refused by name, or its rows are listed."""
    good = large(tmp_path / "good.parquet").read_bytes()
    rng = random.Random(0)
    for i in range(40):
        bad = bytearray(good)
        at = rng.randrange(len(bad) - 8)
        bad[at : at + 8] = rng.randbytes(8)
        path = tmp_path / f"bad{i}.parquet"
        path.write_bytes(bad)
        try:
            found = scan(path, name="bad", spool=tmp_path / "spool")
            rows = read_rows(found, 0, found.n_rows)
        except ShardkitError as err:
            assert "bad" in str(err)
        else:
            assert len(rows) == found.n_rows


def texts(values: list[bytes]) -> Any:
    """A column of text with these bytes, valid or not."""
    column = pyarrow.array(values, pyarrow.binary())
    return pyarrow.StringArray.from_buffers(len(values), column.buffers()[1], column.buffers()[2])


def nested(column: Any) -> Any:
    """A row of each text: a list of one turn."""
    turns = pyarrow.StructArray.from_arrays([column, column], ["role", "content"])
    offsets = pyarrow.array(range(len(column) + 1), pyarrow.int32())
    return pyarrow.ListArray.from_arrays(offsets, turns)


@pytest.mark.parametrize("shape", ["plain", "dictionary", "nested"])
def test_text_that_is_not_utf8_is_one_reject(tmp_path: Path, shape: str) -> None:
    """The rows beside it are kept, though a nested column and a dictionary share their text; the
    reason names the column."""
    column = texts([b"good"] * 9 + [b"\xff\xfe"] + [b"good"] * 6)
    shapes = {"plain": column, "dictionary": column.dictionary_encode(), "nested": nested(column)}
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table([shapes[shape]], ["text"]), path)
    rows = read_rows(scan(path, name="r", spool=tmp_path / "s"), 0, 16)
    assert [i for i, row in enumerate(rows) if isinstance(row, Reject)] == [9]
    bad = rows[9]
    assert isinstance(bad, Reject)
    assert bad.detail.startswith("$.text: not UTF-8")


STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no object": lambda state: [],
    "no list": lambda state: {**state, "_data_files": 5},
    "no name": lambda state: {**state, "_data_files": [{}]},
    "outside": lambda state: {**state, "_data_files": [{"filename": "../../etc/passwd"}]},
    "absolute": lambda state: {**state, "_data_files": [{"filename": "/etc/passwd"}]},
    "missing": lambda state: {**state, "_data_files": [{"filename": "none.arrow"}]},
    "columns": lambda state: {**state, "_format_columns": ["nothing"]},
    "column type": lambda state: {**state, "_format_columns": 7},
}


@pytest.mark.parametrize("name", STATES)
def test_a_wrong_state_json_is_refused(tmp_path: Path, name: str) -> None:
    """Whatever stands in it: an error that names it, and no file outside of the folder is read."""
    folder = tmp_path / "saved"
    folder.mkdir()
    table = pyarrow.table({"text": ["a", "b"]})
    with pyarrow.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}], "_format_columns": None}
    (folder / "state.json").write_text(json.dumps(state))
    assert scan(folder, name="s", spool=tmp_path / "spool").n_rows == 2
    (folder / "state.json").write_text(json.dumps(STATES[name](state)))
    with pytest.raises(ShardkitError, match="saved"):
        scan(folder, name="s", spool=tmp_path / "spool")
    shutil.rmtree(folder)


def test_a_row_of_many_bytes_is_rejected_unread(tmp_path: Path) -> None:
    """Rows beside it are kept."""
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        file.write(b"b" * MAX_ROW_BYTES)
        file.write(b'"}\n{"text": "c"}\n')
    found = scan(path, name="r", spool=tmp_path / "s")
    rows = read_rows(found, 0, 3)
    assert [isinstance(row, Reject) for row in rows] == [False, True, False]
    path.unlink()


def test_a_row_group_too_large_to_keep_is_read_on_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, its rows are those of a group that is kept whole."""
    from shardkit.sources import tables

    path = large(tmp_path / "rows.parquet")
    found = scan(path, name="r", spool=tmp_path / "s")
    whole = read_rows(found, 0, 400)
    monkeypatch.setattr(tables, "KEPT_GROUP", 0)
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    for first, last in ((0, 400), (90, 130), (20, 25), (25, 60), (399, 400)):
        assert read_rows(found, first, last) == whole[first:last]
    assert all(isinstance(row, dict) for row in whole)
    assert not isinstance(whole[0], Conversation)
