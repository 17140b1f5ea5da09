"""Rows of arrays and of lines: the quick finders find what the plain rules say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import pytest

from shardkit.sources import json_rows_fast
from shardkit.sources.json_rows import ArrayFinder, Borders, Finder, LineFinder, SyntaxProblem
from shardkit.sources.json_rows_fast import RegularFinder

Found = list[tuple[int, bytes]] | str

_WORDS = [
    *("plain", "", "},\n  {", "}, {", '"', "\\", '\\"', "[", "]}", ",", "é🙂", "\n", "\\\\"),
    '{"a": 1}, {"a": 2}',
]
_STYLES: list[dict[str, object]] = [
    {"indent": 2},
    {"indent": 4, "ensure_ascii": False},
    {},
    {"separators": (",", ":")},
    {"indent": 1, "separators": (" ,", " : ")},
]


def found_by(make: Callable[[], Finder], text: bytes, size: int) -> Found:
    """The rows that a finder finds in blocks of so many bytes, or what it says is wrong."""
    finder = make()
    try:
        rows = [finder.feed(text[at : at + size]) for at in range(0, len(text), size)]
        borders = np.concatenate([*rows, finder.finish()]).tolist()
    except SyntaxProblem as problem:
        return f"{problem.what} at byte {problem.offset}"
    return [(begin, text[begin:end]) for begin, end in borders]


def parsed(found: Found) -> list[object]:
    """The values of rows that were found."""
    assert not isinstance(found, str), found
    return [json.loads(row) for _, row in found]


def an_array(rng: random.Random) -> bytes:
    """A JSON array of records of one kind, as a program writes it."""

    def text() -> str:
        return "".join(rng.choices(_WORDS, k=rng.randrange(5)))

    kind = rng.randrange(5)
    rows: list[object] = []
    for i in range(rng.randrange(40)):
        record: dict[str, object] = {"id": i, "value": text()}
        if kind == 1:
            record["turns"] = [{"from": text(), "value": text()} for _ in range(rng.randrange(4))]
        rows.append([record, record, text(), [i, text(), {}], rng.randrange(10**6)][kind])
    if rng.random() < 0.3:  # no program wrote this one
        between = rng.choices([", ", " ,", ",", ",  "], [20, 1, 1, 1], k=len(rows))
        parts = [f"{sep}{json.dumps(row)}" for sep, row in zip(between, rows, strict=True)]
        return ("[" + rng.choice(["", " "]) + "".join(parts).lstrip(" ,") + "]").encode()
    return json.dumps(rows, **rng.choice(_STYLES)).encode()  # type: ignore[arg-type]


def broken(rng: random.Random, text: bytes) -> bytes:
    """The same with a few bytes taken out, put in or changed."""
    changed = bytearray(text)
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(changed)) if changed else 0
        how = rng.randrange(3)
        if how == 0:
            del changed[at : at + 1]
        else:
            changed[at : at + (how == 1)] = rng.choice([b'"', b"}", b"]", b",", b" ", b"\\", b"{"])
    return bytes(changed)


def counted_feeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the size of each block that ArrayFinder is fed."""
    fed: list[int] = []
    feed = ArrayFinder.feed

    def counted(self: ArrayFinder, block: bytes) -> Borders:
        fed.append(len(block))
        return feed(self, block)

    monkeypatch.setattr(ArrayFinder, "feed", counted)
    return fed


@pytest.mark.parametrize("size", [50, 300, 2000])
def test_a_regular_array_is_cut_as_any_array_is(size: int) -> None:
    """Whole ones and broken ones, in blocks of any size: the same rows, or the same problem."""
    rng = random.Random(size)
    for _ in range(200):
        text = an_array(rng)
        if rng.random() < 0.5:
            text = broken(rng, text)
        assert found_by(RegularFinder, text, size) == found_by(ArrayFinder, text, size), text


def test_rows_are_cut_at_their_commas() -> None:
    """Both finders, against the parser."""
    rng = random.Random(1)
    for _ in range(200):
        text = an_array(rng)
        assert parsed(found_by(RegularFinder, text, 100)) == json.loads(text)


def test_the_quick_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that json.dump wrote is not followed bracket by bracket after the first block."""
    rows = [{"instruction": f"{i}", "output": "}, {" * (i % 3)} for i in range(500)]
    text = json.dumps(rows, indent=4).encode()
    fed = counted_feeds(monkeypatch)

    assert parsed(found_by(RegularFinder, text, 1000)) == rows
    assert sum(fed) < 3000


@pytest.mark.parametrize("row", [b'{"a": "%s"}', b'{"a": 1, "b": ["%s"]}'])
def test_a_row_that_never_ends_is_not_kept(row: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit the rest is followed bracket by bracket, in blocks."""
    monkeypatch.setattr(json_rows_fast, "_MAX_WAITING", 2000)
    rows = [b'{"a": "x"}'] * 100 + [row % (b"y" * 100_000)] + [b'{"a": "x"}'] * 3
    text = b"[" + b",\n".join(rows) + b"]"

    expected = found_by(ArrayFinder, text, 500)
    kept: list[int] = []
    feed = RegularFinder.feed

    def watched(self: RegularFinder, block: bytes) -> Borders:
        rows = feed(self, block)
        kept.append(len(self._waiting))
        return rows

    monkeypatch.setattr(RegularFinder, "feed", watched)

    assert found_by(RegularFinder, text, 500) == expected
    assert max(kept) < 3000


@pytest.mark.parametrize("end", [b",]", b", ,]", b"]]", b"] x", b"", b",", b'{"a": 1}]'])
def test_what_is_wrong_at_the_end_is_seen(end: bytes) -> None:
    """After many regular rows."""
    text = b"[" + b", ".join([b'{"a": "x"}'] * 200) + end

    found = found_by(RegularFinder, text, 300)

    assert found == found_by(ArrayFinder, text, 300)
    assert isinstance(found, str) or end == b'{"a": 1}]'


@pytest.mark.parametrize("size", [1, 7, 64])
def test_lines_are_rows_unless_they_are_blank(size: int) -> None:
    """Blank lines, white space before and behind, no newline at the end."""
    rng = random.Random(size)
    for _ in range(200):
        lines = [
            rng.choice(["", " ", "\t \r", "{}", '  {"a": 1} ', '{"b": " "}\r'])
            for _ in range(rng.randrange(12))
        ]
        text = ("\n".join(lines) + rng.choice(["", "\n"])).encode()
        expected, at = [], 0
        for line in text.split(b"\n"):
            if line.strip(b" \t\r"):
                expected.append((at, line))
            at += len(line) + 1
        assert found_by(LineFinder, text, size) == expected, text


@pytest.mark.parametrize("odd", [" , ", ",", ",  ", " ,"])
def test_one_odd_separator_is_seen_wherever_it_is(odd: str) -> None:
    """At each place in turn, also where a block ends; numbers have no end to be known by."""
    numbers = [str(7919 * n % 900 + 100) for n in range(100)]
    for k in range(1, 100):
        text = f"[{', '.join(numbers[:k])}{odd}{', '.join(numbers[k:])}]".encode()
        assert found_by(RegularFinder, text, 150) == found_by(ArrayFinder, text, 150), k


def test_two_commas_where_a_block_begins_are_a_problem() -> None:
    """With nothing but the comma in hand there is no row yet, and nothing to prove."""
    text = b'[1,2,3,,"long"]'

    found = found_by(RegularFinder, text, 7)

    assert (
        found == found_by(ArrayFinder, text, 7) == "two commas with nothing between them at byte 7"
    )
