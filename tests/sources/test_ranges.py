"""Row borders that are found range by range are those that one pass finds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from shardkit.errors import BadInput
from shardkit.sources import SourceScan, ranges, scan
from shardkit.sources.ranges import Cut, Wanted, digest_of, digested, find_borders, looked_at
from shardkit.sources.ranges import put_together as put

_TEXTS = ["plain", "", "},\n  {", '},{"id": 3', '"', "\\", "[", "]}", "é🙂", "\n", "long " * 60]
_STYLES: list[dict[str, object]] = [{"indent": 2}, {}, {"separators": (",", ":")}]


def in_ranges(wanted: Wanted) -> tuple[SourceScan, bool]:
    """The scan of a file, range by range where it is cut; and whether all ranges were proven."""
    found = looked_at(wanted)
    if isinstance(found, SourceScan):
        return found, False
    counts = tuple(find_borders((found, number)) for number in range(len(found.begins)))
    return put((found, counts)), None not in counts


def outcome(path: Path, spool: Path, range_bytes: int | None) -> tuple[object, bool]:
    """Rows, borders, digest and kind of a file; or what is said to be wrong with it."""
    try:
        if range_bytes is None:
            one, is_proven = scan(path, name="x", spool=spool), False
        else:
            one, is_proven = in_ranges(Wanted(path, "x", spool, range_bytes))
    except BadInput as err:
        return str(err), False
    assert one.borders is not None
    assert not list(spool.parent.glob("*.rows-*"))
    sha256 = one.sha256 or digested(one, digest_of(one.path)).sha256
    return (one.n_rows, Path(one.borders).read_bytes(), sha256, one.kind, one.stamp), is_proven


def a_file(rng: random.Random) -> bytes:
    """An array or lines of records; some broken, some that no program wrote."""
    rows = [{"id": i, "value": rng.choice(_TEXTS)} for i in range(rng.randrange(80))]
    how = rng.randrange(4)
    if how == 0:
        lines = [json.dumps(row) + rng.choice(["", "", " ", "\n", "\r"]) for row in rows]
        text = "\n".join(lines) + rng.choice(["", "\n", "\n\n"])
        return (rng.choice(["", "\ufeff"]) + text).encode()
    data = json.dumps(rows, **rng.choice(_STYLES)).encode()  # type: ignore[arg-type]
    if how == 1 and data:
        at = rng.randrange(len(data))
        return data[:at] + rng.choice([b"", b",", b"}", b'"', b"["]) + data[at + 1 :]
    return data


def test_ranges_find_what_one_pass_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays and lines, whole and broken, with texts that look like borders, cut anywhere."""
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 300)
    rng = random.Random(7)
    n_proven = 0
    for number in range(100):
        path = tmp_path / f"rows-{number}.{rng.choice(['json', 'jsonl'])}"
        path.write_bytes(a_file(rng))
        expected, _ = outcome(path, tmp_path / "whole", None)
        found, is_proven = outcome(path, tmp_path / "ranges", rng.choice([40, 150, 700]))
        assert found == expected, path.read_bytes()
        n_proven += is_proven
    assert n_proven > 20


def test_a_text_full_of_borders_is_seen_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges that begin inside a text are not proven; the file is scanned from its start."""
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 200)
    rows = [{"id": i, "value": "x"} for i in range(30)]
    path = tmp_path / "rows.json"
    start = json.dumps(rows)[:-1].encode()
    path.write_bytes(start + b', {"id": 0, "value": ["' + b'x\\"}, {\\"id\\": ' * 50 + b'"]}]')
    cut = looked_at(Wanted(path, "x", tmp_path / "spool", 100))
    assert isinstance(cut, Cut)
    assert outcome(path, tmp_path / "a", 100)[0] == outcome(path, tmp_path / "b", None)[0]
