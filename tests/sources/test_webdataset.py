"""Webdataset tars as a source: what stock webdataset writes, and what is wrong with others."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from records import pack_small

from shardkit import verify
from shardkit.conversation import Reason, Reject
from shardkit.errors import BadInput
from shardkit.format.shard import Shard
from shardkit.sources import read_rows, scan
from shardkit.sources.json_value import parse

webdataset = pytest.importorskip("webdataset")
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A lamp."}]


def picture(i: int) -> bytes:
    """A small JPEG."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (i, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def samples(n: int) -> list[dict[str, Any]]:
    """Captions and conversations by turns."""
    found: list[dict[str, Any]] = []
    for i in range(n):
        turns: Any = TURNS if i % 4 else {"conversations": TURNS}
        words = {"txt": f"a red lamp {i}"} if i % 2 else {"json": turns}
        found.append({"__key__": f"{i:04d}", "jpg": picture(i), "cls": i, **words})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A tar as the webdataset library writes it."""
    with webdataset.TarWriter(str(path)) as writer:
        for row in rows:
            writer.write(row)
    return path


def test_a_tar_of_webdataset_is_packed(tmp_path: Path) -> None:
    """Pictures are the members' bytes, captions the answers; parts do not change a byte; members
    that nobody reads are counted; verify reads the tar again."""
    source = write(tmp_path / "rows.tar", samples(30))
    trees = []
    for part_rows in (None, 7):
        out = tmp_path / f"out{part_rows}"
        manifest = pack_small(source, out, part_rows=part_rows, shard_size=1 << 30)
        assert manifest.recipe["source_format"] == "webdataset"
        assert (manifest.n_samples, manifest.n_images) == (30, 30)
        assert manifest.checks["unread_fields"]["fields"] == {"rows.tar": {"$.cls": 30}}
        assert verify(out, sources=[source]).findings == []
        found = []
        for entry in manifest.shards:
            shard = Shard.open(out / entry.name)
            found += [bytes(shard.images(i)[0]) for i in range(shard.n_samples)]
            shard.close()
        trees.append(found)
    assert trees[0] == trees[1] == [picture(i) for i in range(30)]


def test_a_compressed_tar_is_the_same(tmp_path: Path) -> None:
    """.tar.gz is decompressed once."""
    source = write(tmp_path / "rows.tar", samples(4))
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    assert pack_small(packed, tmp_path / "out").n_images == 4


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "video": ({"mp4": b"x", "txt": "a"}, "unsupported_field"),
    "no picture": ({"txt": "a"}, "bad_record"),
    "no words": ({"jpg": picture(0)}, "bad_record"),
    "no json": ({"jpg": picture(0), "json": b"{"}, "bad_json"),
    "broken picture": ({"jpg": b"nothing", "txt": "a"}, "image_unreadable"),
    "two pictures": (
        {"0.jpg": picture(0), "1.jpg": picture(1), "json": {"conversations": TURNS}},
        "placeholder_mismatch",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_rejected_by_name(tmp_path: Path, name: str) -> None:
    """The others are kept."""
    members, reason = BAD[name]
    path = tmp_path / "rows.tar"
    with tarfile.open(path, "w") as tar:
        for key, fields in (("a", {"jpg": picture(1), "txt": "good"}), ("b", members)):
            for extension, value in fields.items():
                data = (
                    value
                    if isinstance(value, bytes)
                    else (value.encode() if isinstance(value, str) else json.dumps(value).encode())
                )
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    manifest = pack_small(path, tmp_path / "out")
    assert manifest.sources[0].rejected == {reason: 1}
    assert manifest.n_samples == 1


NAN = b'{"conversations": [{"from": "human", "value": "Q", "score": NaN}]}'
MEMBERS: dict[str, tuple[str, bytes, str | None]] = {
    "deep": ("json", b"[" * 257 + b"]" * 257, "nested deeper than 256 levels"),
    "very deep": ("json", b"[" * 100_000 + b"]" * 100_000, "nested deeper than 256 levels"),
    "broken": ("json", b'{"a": 1,}', "malformed"),
    "no UTF-8": ("txt", b"a \xff", "not UTF-8"),
    "no number": ("json", NAN, None),
    "as deep as may be": ("json", b"[" * 256 + b"]" * 256, None),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_json_of_a_member_is_what_it_is_in_a_line(tmp_path: Path, name: str) -> None:
    """Read, or rejected with the reason and the words of JSONL, and the name of the member."""
    extension, data, complaint = MEMBERS[name]
    path = tmp_path / "rows.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(f"images/b.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    (row,) = read_rows(scan(path, name="rows.tar", spool=tmp_path / "spool"), 0, 1)
    if complaint is None:
        line: Any = parse(data)
        assert isinstance(row, dict)
        assert repr(row[extension]) == repr(line)
        return
    assert isinstance(row, Reject)
    assert row.detail.startswith(f"images/b.{extension}: ")
    assert complaint in row.detail
    assert "as a tar" not in row.detail
    if extension == "json":
        assert row.reason is Reason.BAD_JSON


def test_a_tar_with_a_member_that_is_nested_without_end_is_packed(tmp_path: Path) -> None:
    """Its format is found, and the member's row is rejected."""
    path = write(tmp_path / "rows.tar", [{"__key__": "a", "json": b"[" * 100_000}, *samples(2)])
    manifest = pack_small(path, tmp_path / "out")
    assert manifest.sources[0].rejected == {"bad_json": 1}


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.85])
def test_a_tar_that_is_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    """At any place, also where a member ends."""
    source = write(tmp_path / "rows.tar", samples(20))
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BadInput, match=r"rows\.tar"):
        pack_small(source, tmp_path / "out")
    with tarfile.open(source, "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    source.write_bytes(source.read_bytes()[:512])
    with pytest.raises(BadInput, match="no end"):
        pack_small(source, tmp_path / "out2")
