"""Rows of a scanned file as objects: many in one call are what each is alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.sources import SOURCES, ReadOptions, Unread, read_plain, read_rows, read_some, scan
from shardkit.sources.json_value import parse

DEEP = json.loads("[" * 256 + "]" * 256)
"""As deep as a row may be."""
GOOD = [
    DEEP,
    "[{" * 400,
    {"a": 1, "b": ["x", {"c": None}]},
    "text, with ] and \n",
    [],
    2.5,
    {"a": "é😀"},
]
BROKEN = [
    b'{"a": 1,}',
    b'{"a": "\\ud800"}',
    b"nonsense",
    b'{"a": "\xff"}',
    b"[" * 257 + b"]" * 257,
]


def _write(path: Path, rows: list[bytes]) -> Path:
    if path.suffix == ".json":
        path.write_bytes(b"[ " + b" ,\n".join(rows) + b"\n]\n")
    else:
        path.write_bytes(b"\n \n".join(rows))
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("broken", [None, *range(len(BROKEN))])
def test_a_run_of_rows_is_what_each_row_is_alone(
    tmp_path: Path, name: str, broken: int | None
) -> None:
    """One broken row changes nothing for its neighbours, in whichever order they are read."""
    texts = [json.dumps(row).encode() for row in [{}, *GOOD]]
    if broken is not None:
        texts.insert(3, BROKEN[broken])
    found = scan(_write(tmp_path / name, texts), name=name, spool=tmp_path / "spool")
    expected = [_plain(parse(text)) for text in texts]

    assert found.n_rows == len(texts)
    assert [_plain(row) for row in read_rows(found, 0, len(texts))] == expected
    assert read_rows(found, 0, 3) == expected[:3]
    backwards = np.arange(len(texts))[::-1]
    assert [_plain(row) for row in read_some(found, backwards)] == expected[::-1]
    assert expected.count(Reason.BAD_JSON) == (broken is not None)


def _plain(row: object) -> object:
    """The row, or why there is none, without the byte in the row's text."""
    return row.reason if isinstance(row, Reject) else row


def test_two_values_in_a_line_are_one_broken_row(tmp_path: Path) -> None:
    """A line that holds two JSON values is a reject, not two rows."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2} {"a": 3}\n{"a": 4}\n')
    found = scan(path, name="rows.jsonl", spool=tmp_path / "spool")

    rows = read_rows(found, 0, 3)

    assert [isinstance(row, Reject) for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    "first",
    [
        b'{"a":\n{"b": 1}}',
        b'{"a": {"b": 1}\n}',
        b'{"a": {"b": 1},\n"c": {}}',
        b"{}\n{}{}",
        b"[{}\n,{}]",
    ],
)
def test_a_value_over_two_lines_is_two_broken_rows(tmp_path: Path, first: bytes) -> None:
    """Also when two values in another line make up for it: rows would get each other's numbers."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"z": 0}\n' + first + b'\n{"d": 2} {"e": 3}\n{"f": 4}\n')
    found = scan(path, name="rows.jsonl", spool=tmp_path / "spool")
    n_rows = first.count(b"\n") + 4

    rows = read_rows(found, 0, n_rows)

    alone = [parse(line) for line in path.read_bytes().splitlines()]
    assert [_plain(row) for row in rows] == [_plain(row) for row in alone]


ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Sing.", "input": "", "output": "La."},
    {"instruction": "Sing.", "output": "La.", "id": 7},
    {"instruction": "Sing.", "input": None, "output": "La."},
    {"instruction": "Sing.", "input": 5, "output": "La."},
    {"instruction": "Sing.", "input": "", "output": "<nooutput>"},
    {"instruction": "Sing.", "input": "", "output": ""},
    {"instruction": "Sing.", "output": "La.", "system": "Be loud."},
    {"instruction": "Sing.", "input": "", "output": "La.", "history": [["Q", "A"]]},
    {"instruction": "Sing.", "history": [["Q", "A"]], "output": "La."},
    "no object",
    {"instruction": "Sing.", "input": ""},
]


SHAREGPT = [
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    {"conversations": [{"from": "user", "value": "Q"}, {"from": "bard", "value": ""}], "id": "x"},
    {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}]},
    {"conversations": [{"from": "gpt", "value": "Q"}, {"from": "human", "value": "A"}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "nobody", "value": "A"}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": None}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "id": 1.5},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}] * 2},
    {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
        "system": "S",
    },
    {"conversations": [{"role": "human", "content": "Q"}, {"from": "gpt", "value": "A"}]},
    {
        "conversations": [
            {"from": "human", "value": "Q", "weight": 0},
            {"from": "gpt", "value": "A"},
        ]
    },
    {"conversations": []},
]
MESSAGES = [
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    {
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "id": 3,
    },
    {"messages": [{"role": "assistant", "content": "Q"}, {"role": "user", "content": "A"}]},
    {"messages": [{"role": "system", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A", "loss": False},
        ]
    },
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": "A"},
        ]
    },
    {
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "tools": "[]",
    },
    [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
    {"messages": [{"role": "user", "content": "Q"}]},
]
RECORDS = {
    "alpaca": ("alpaca", ALPACA, 5),
    "conversations": ("chat", SHAREGPT, 3),
    "messages": ("chat", MESSAGES, 2),
}
"""Format, records of it, and how many of them are plain."""


def plain_of(one: object) -> object:
    """An exchange as a conversation."""
    return one.conversation if isinstance(one, Exchange) else one


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", RECORDS)
def test_reading_many_records_says_what_reading_each_does(name: str, system: str | None) -> None:
    """The quick reader takes only what it reads as the careful one would."""
    options = ReadOptions(system=system)
    kind, rows, n_plain = RECORDS[name]
    source = SOURCES[kind]
    records = [*rows, Reject(Reason.BAD_JSON)]

    found = source.read_all(records, options)

    expected = [*(plain_of(source.read(one, options)) for one in rows), records[-1]]
    assert [plain_of(one) for one in found] == expected
    assert sum(isinstance(one, Exchange) for one in found) == (n_plain if system is None else 0)
    assert any(isinstance(one, Conversation) for one in found)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("name", RECORDS)
def test_plain_rows_are_decoded_as_such_or_not_at_all(
    tmp_path: Path, name: str, suffix: str
) -> None:
    """A stretch of plain rows says what its records say; with any other row it is not one."""
    kind, records, _ = RECORDS[name]
    source = SOURCES[kind]
    path = _write(tmp_path / f"rows.{suffix}", [json.dumps(row).encode() for row in records])
    found = scan(path, name=path.name, spool=tmp_path / "spool")
    n_decoded = 0
    for first in range(len(records)):
        for last in range(first + 1, len(records) + 1):
            unread = Unread()
            chosen = np.arange(first, last)
            read = source.read_rows(found, chosen, ReadOptions(), unread)
            wanted = [plain_of(source.read(one, ReadOptions())) for one in records[first:last]]
            assert [plain_of(one) for one in read] == wanted
            n_decoded += any(read_plain(found, chosen, plain) for plain in source.plain)

    assert n_decoded > 2
    for plain in source.plain:
        assert read_plain(found, np.arange(len(records)), plain) is None
        assert read_plain(found, np.array([1, 0]), plain) is None


def test_two_plain_rows_in_a_line_are_not_plain(tmp_path: Path) -> None:
    """They are one broken row, as above."""
    (plain,) = SOURCES["alpaca"].plain
    row = json.dumps(ALPACA[0]).encode()
    path = tmp_path / "rows.jsonl"
    for text in (row + b"\n" + row + b" " + row, row[:-1] + b"\n}\n" + row + b" " + row):
        path.write_bytes(text + b"\n")
        found = scan(path, name="r", spool=tmp_path / "s")
        n_rows = text.count(b"\n") + 1
        assert read_plain(found, np.arange(n_rows), plain) is None
