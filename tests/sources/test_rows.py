"""Rows of a scanned file as objects: many in one call are what each is alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.sources import SOURCES, ReadOptions, read_rows, read_some, scan
from shardkit.sources.rows import parse

GOOD = [{"a": 1, "b": ["x", {"c": None}]}, "text, with ] and \n", [], 2.5, {"a": "é😀"}]
BROKEN = [
    b'{"a": 1,}',
    b'{"a": "\\ud800"}',
    b"nonsense",
    b'{"a": "\xff"}',
    b"[" * 5000 + b"]" * 5000,
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


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_reading_many_records_says_what_reading_each_does(system: str | None) -> None:
    """The quick reader takes only what it reads as the careful one would."""
    options = ReadOptions(system=system)
    alpaca = SOURCES["alpaca"]
    records = [*ALPACA, Reject(Reason.BAD_JSON)]

    found = alpaca.read_all(records, options)

    as_conversations = [one.conversation if isinstance(one, Exchange) else one for one in found]
    assert as_conversations == [*(alpaca.read(one, options) for one in ALPACA), records[-1]]
    assert sum(isinstance(one, Exchange) for one in found) == (3 if system is None else 0)
    assert any(isinstance(one, Conversation) for one in found)
