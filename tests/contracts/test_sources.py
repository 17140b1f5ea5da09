"""What every format in `SOURCES` promises, on its own small file in tests/data/sources."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from PIL import Image
from records import pack_small, write_json
from shared import shared

from shardkit import verify
from shardkit.conversation import Exchange, Reason, Reject
from shardkit.errors import BadInput
from shardkit.format.shard import Shard
from shardkit.sources import SOURCES, ReadOptions, detect

DATA = Path(__file__).resolve().parents[1] / "data/sources"
PLAIN = ReadOptions(has_images=True)


def rows_of(name: str) -> list[Any]:
    """The records of the format's file."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def goldens_of(name: str) -> list[Any]:
    """What each record must become: fields that are not at their defaults, or the reason."""
    return [json.loads(line) for line in (DATA / f"{name}.golden.jsonl").read_text().splitlines()]


def as_json(found: Any) -> Any:
    """A conversation or a Reject as in the golden files."""
    if isinstance(found, Reject):
        return {"reject": str(found.reason), "detail": found.detail}
    conversation = found.conversation if isinstance(found, Exchange) else found
    plain = msgspec.to_builtins(conversation)
    defaults = msgspec.to_builtins(type(conversation)(()))
    fields = {key: value for key, value in plain.items() if value != defaults[key]}
    if "messages" in fields:
        fields["messages"] = [_message(message) for message in fields["messages"]]
    return json.loads(json.dumps(fields))


def _message(message: dict[str, Any]) -> list[Any]:
    """[role, text], and after them what else there is."""
    words = [message["role"], message["text"]]
    words += ["no loss"] if not message["supervised"] else []
    words += [message[key] for key in ("tool_calls", "call_text", "fields") if message[key]]
    words += [["image" if p["text"] is None else p["text"] for p in message["parts"]]][
        : bool(message["parts"])
    ]
    return words + ([f"name {message['name']}"] if message["name"] else [])


@pytest.mark.parametrize("name", SOURCES)
def test_records_become_what_is_written_down(name: str) -> None:
    """Row by row, read one by one or all at once: the conversation, or the reason and the path."""
    source, rows, goldens = SOURCES[name], rows_of(name), goldens_of(name)
    assert [as_json(source.read(row, PLAIN)) for row in rows] == goldens
    assert [as_json(found) for found in source.read_all(rows, PLAIN)] == goldens
    kinds = {"reject" in golden for golden in goldens}
    assert kinds == {True, False}


@pytest.mark.parametrize("name", SOURCES)
def test_no_value_is_a_crash(name: str) -> None:
    """Whatever JSON stands where the format wants something else: a Reject, never an exception."""
    odd: list[Any] = [None, True, 3, -0.5, "", "text", [], [[]], [None], {}, {"": None}, [{}]]
    for row in rows_of(name)[:5]:
        fields = row if isinstance(row, dict) else {}
        for key in fields:
            for value in odd:
                SOURCES[name].read({**fields, key: value}, PLAIN)
    for value in odd:
        assert isinstance(SOURCES[name].read(value, PLAIN), Reject)


@pytest.mark.parametrize("name", SOURCES)
def test_auto_knows_the_format(name: str) -> None:
    """`--format auto` on the format's own file is that format."""
    assert detect(rows_of(name), "here")[0] == name


@pytest.mark.parametrize("name", SOURCES)
def test_a_system_message_is_added_where_none_is(name: str) -> None:
    """--system comes first in chats without one, and nowhere else."""
    for plain, found in zip(
        SOURCES[name].read_all(rows_of(name), PLAIN),
        SOURCES[name].read_all(rows_of(name), ReadOptions(system="S", has_images=True)),
        strict=True,
    ):
        before, after = as_json(plain), as_json(found)
        messages = before.get("messages", [["system"]])
        is_bare = before.get("kind", "chat") == "chat" and messages[0][0] != "system"
        if is_bare:
            before["messages"] = [["system", "S"], *messages]
        assert after == before or "reject" in before


def pack_source(name: str, source: Path, out: Path) -> Any:
    """A pack of this format; small pictures 0.png and 1.png lie beside the source."""
    options: dict[str, Any] = {"max_rejects": None}
    if name in ("chat", "llava"):
        for i in range(2):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(source.parent / f"{i}.png")
        options["image_root"] = source.parent
    return pack_small(source, out, **options)


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_is_in_the_ledger(tmp_path: Path, name: str) -> None:
    """Packed whole: rows = kept + rejected, the reasons are those of the golden file and those
    that only tokens show, and the stored tokens are what the source gives again."""
    rows, goldens = rows_of(name), goldens_of(name)
    source = tmp_path / f"{name}.jsonl"
    source.write_bytes((DATA / source.name).read_bytes())
    manifest = pack_source(name, source, tmp_path / "out")
    ledger = manifest.sources[0]
    assert ledger.n_rows == len(rows) == ledger.n_kept + sum(ledger.rejected.values())
    listed = {
        line["row"]: line["reason"]
        for line in map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())
    }
    expected = {i: golden["reject"] for i, golden in enumerate(goldens) if "reject" in golden}
    assert expected.items() <= listed.items()
    assert set(listed.values()) - set(expected.values()) <= {
        Reason.NO_SUPERVISED_TOKENS,
        Reason.TEMPLATE_FAILED,
        Reason.TEMPLATE_LOST_TEXT,
    }
    assert verify(tmp_path / "out", sources=[source]).findings == []


def _array(rows: list[Any], path: Path) -> Path:
    return write_json(path.with_suffix(".json"), rows)


def _gzip(rows: list[Any], path: Path) -> Path:
    path = path.with_suffix(".json.gz")
    path.write_bytes(gzip.compress(json.dumps(rows, indent=2).encode()))
    return path


def _zstd(rows: list[Any], path: Path) -> Path:
    path = path.with_suffix(".jsonl.zst")
    lines = "\r\n".join(json.dumps(row) for row in rows) + "\n"
    path.write_bytes(zstandard.compress(b"\xef\xbb\xbf" + lines.encode()))
    return path


def _parquet(rows: list[Any], path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = path.with_suffix(".parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


CONTAINERS: dict[str, Callable[[list[Any], Path], Path]] = {
    "array": _array,
    "array-gzip": _gzip,
    "lines-zstd": _zstd,
    "parquet": _parquet,
}


UNIFORM: dict[str, list[Any]] = {
    "alpaca": [
        {"instruction": f"Name {i} é.", "input": None, "output": "x\n" * i} for i in range(1, 6)
    ],
    "llava": [
        {
            "id": str(i),
            "image": [f"{i % 2}.png"],
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is {i}?"},
                {"from": "gpt", "value": "A lamp."},
            ],
        }
        for i in range(5)
    ],
    "text": [{"text": f"A river {i} runs."} for i in range(5)],
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", UNIFORM)
def test_containers_hold_the_same(tmp_path: Path, name: str, container: str) -> None:
    """Rows as JSON array, gzip, zstd with BOM and CRLF, Parquet: the tokens of JSONL."""
    good = UNIFORM[name]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in good))
    tokens = []
    for source, out in (
        (lines, tmp_path / "a"),
        (CONTAINERS[container](good, tmp_path / "rows"), tmp_path / "b"),
    ):
        manifest = pack_source(name, source, out)
        shard = Shard.open(out / manifest.shards[0].name)
        tokens.append([shard.tokens(i).tolist() for i in range(shard.n_samples)])
        shard.close()
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 5


GOOD = '{"instruction": "a", "input": "", "output": "b"}'
BROKEN = {
    "trailing comma": (f"[{GOOD},\n{GOOD},\n]", "a comma before the closing bracket", "line 3"),
    "two commas": (f"[{GOOD},\n,{GOOD}]", "two commas", "line 2"),
    "cut short": (f"[{GOOD},\n{GOOD}", "ends inside the array", "line 2"),
    "text after": (f"[{GOOD}]\n\nx", "after the end of the array", "line 3"),
    "an open string": (f'[{GOOD},\n{{"instruction": "never', "ends inside the array", "line 2"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_array_names_file_line_and_byte(tmp_path: Path, kind: str) -> None:
    """Where the structure breaks, to the byte; no traceback, nothing visible."""
    text, words, line = BROKEN[kind]
    source = tmp_path / "rows.json"
    source.write_text(text)
    with pytest.raises(BadInput, match=words) as caught:
        pack_small(source, tmp_path / "out")
    assert f"rows.json, {line}, byte " in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    """A compressed file that is cut short or has wrong bytes: its name, and no traceback."""
    text = "\n".join(json.dumps({"text": f"row {i * i}"}) for i in range(50_000)).encode()
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    data = bytearray(gzip.compress(text) if suffix == "gz" else packed)
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2 : len(data) // 2 + 9] = b"\xff" * 9
    source = tmp_path / f"rows.jsonl.{suffix}"
    source.write_bytes(data)
    with pytest.raises(BadInput, match=rf"rows\.jsonl\.{suffix}: does not decompress"):
        pack_small(source, tmp_path / "out")


def test_several_frames_and_members_are_one_file(tmp_path: Path) -> None:
    """Archives that were appended to one another, skippable frames between: all rows are read."""
    lines = [json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(4)]
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    zst, gz = tmp_path / "a.jsonl.zst", tmp_path / "b.jsonl.gz"
    zst.write_bytes(skippable.join(zstandard.compress(line) for line in lines) + skippable)
    gz.write_bytes(b"".join(gzip.compress(line) for line in lines))
    for i, source in enumerate((zst, gz)):
        assert pack_small(source, tmp_path / f"out{i}").sources[0].n_kept == 4


def test_a_broken_row_of_an_array_is_one_reject(tmp_path: Path) -> None:
    """Between its commas a row may be anything: it is rejected, with its place in the file."""
    source = tmp_path / "rows.json"
    source.write_text(f'[{GOOD},\n{{"instruction": oops}},\n{GOOD}]')
    manifest = pack_small(source, tmp_path / "out")
    assert manifest.sources[0].rejected == {"bad_json": 1}
    line = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert line["row"] == 1
    assert f"byte {source.read_text().index('{', 5)}" in line["detail"]


def test_broken_lines_are_salvaged(tmp_path: Path) -> None:
    """JSONL with a cut line, two objects in a line, bytes that are no UTF-8, and an end without
    newline: the good lines are kept, the others listed with their row and byte."""
    source = tmp_path / "rows.jsonl"
    lines = [GOOD, GOOD[:-5], GOOD + GOOD, GOOD, "", GOOD.replace("b", "\udcff")]
    source.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n" + GOOD.encode())
    manifest = pack_small(source, tmp_path / "out")
    assert manifest.sources[0].n_kept == 3
    assert manifest.sources[0].rejected == {"bad_json": 3}
    listed = [json.loads(s) for s in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert [line["row"] for line in listed] == [1, 2, 4]
    text = source.read_bytes()
    for line in listed:
        begin = int(line["detail"].rsplit("byte ", 1)[1])
        assert text[begin - 1 : begin + 2] == b'\n{"'
    with pytest.raises(BadInput, match=r"rows\.jsonl, row 1"):
        pack_small(source, tmp_path / "strict", on_error="fail")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    """Finding the rows of 60 MB takes as much memory as of 3 MB."""
    code = """
import sys
from pathlib import Path
from shardkit.sources import scan
found = scan(Path(sys.argv[1]), name="x", spool=Path(sys.argv[2]))
status = Path("/proc/self/status").read_text()
print(found.n_rows, status.split("VmHWM:")[1].split()[0])
"""
    peaks = []
    for n in (3_000, 60_000):
        rows = (json.dumps({"text": f"{i} [{{" + "é\\n" * 160}).encode() for i in range(n))
        text = b"[" + b",".join(rows) + b"]" if suffix == "json" else b"\n".join(rows)
        source = tmp_path / f"rows-{n}.{suffix}"
        source.write_bytes(zstandard.compress(text) if suffix.endswith("zst") else text)
        words = [sys.executable, "-c", code, str(source), str(tmp_path / f"spool-{n}")]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        n_rows, peak = map(int, done.stdout.split())
        assert n_rows == n
        peaks.append(peak)
    assert len(text) > 50e6
    assert peaks[1] - peaks[0] < 15_000


@pytest.mark.needs_shared
def test_a_broken_file_that_was_really_published(tmp_path: Path) -> None:
    """A trailing comma in line 14,007 of a file that people downloaded: named to the line."""
    source = next(p for p in shared("data/text/malformed").iterdir() if p.suffix == ".json")
    with pytest.raises(BadInput, match=r"line 14007, byte \d+: a comma before the closing bracket"):
        pack_small(source, tmp_path / "out")
