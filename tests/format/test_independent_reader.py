"""docs/format.md is enough: a reader written from its text alone reads what shardkit packs.

The reader below imports nothing of shardkit, and knows the format by the sections that it names.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard
from numpy.typing import NDArray
from PIL import Image
from records import alpaca_rows, pack_small, write_json, write_llava

Sample = dict[str, Any]


def read_dataset(folder: Path) -> tuple[dict[str, Any], list[Sample]]:
    """The manifest and all samples; an AssertionError where the document is not kept to."""
    manifest = read_manifest((folder / "manifest.json").read_bytes())
    samples = []
    for entry in manifest["shards"]:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}", entry["name"])  # section 4
        data = (folder / entry["name"]).read_bytes()
        assert (len(data), sha256(data)) == (entry["n_bytes"], entry["sha256"])  # section 7
        stream = frames(data) if entry["name"].endswith(".zst") else data
        samples += read_shard(stream, entry, manifest["identity"]["recipe"])
    return manifest, samples


def read_manifest(data: bytes) -> dict[str, Any]:
    """Sections 10 and 11.2."""
    body, found, end = data.rpartition(b',\n"sha256": "')
    assert found
    assert end == sha256(body).encode() + b'"\n}\n'
    manifest: dict[str, Any] = json.loads(data)
    assert manifest["format"] == "shardkit"
    assert manifest["version"].split(".")[0] == "1"
    assert manifest["fingerprint"] == sha256(canonical(manifest["identity"]))
    content = [[entry["n_samples"], entry["footer"]] for entry in manifest["shards"]]
    assert manifest["content"] == sha256(canonical(content))
    for source in manifest["sources"]:
        assert source["n_rows"] == source["n_kept"] + sum(source["rejected"].values())
    return manifest


def frames(data: bytes) -> bytes:
    """Section 9: each frame by the seek table, of the size that it says."""
    n_frames, descriptor, magic = struct.unpack("<IBI", data[-9:])
    assert (descriptor, magic) == (0, 0x8F92EAB1)
    begin = len(data) - 9 - 8 * n_frames
    assert struct.unpack("<II", data[begin - 8 : begin]) == (0x184D2A5E, 8 * n_frames + 9)
    out, at = b"", 0
    for i in range(n_frames):
        packed, size = struct.unpack_from("<II", data, begin + 8 * i)
        frame = zstandard.ZstdDecompressor().decompress(data[at : at + packed])
        assert len(frame) == size
        out, at = out + frame, at + packed
    return out


def read_shard(data: bytes, entry: dict[str, Any], recipe: dict[str, Any]) -> list[Sample]:
    """Sections 5 to 7."""
    block = data[-1536:-1024]
    assert xxh3(block) == entry["footer"]
    body, _, rest = block.rpartition(b',"xxh3":"')
    assert rest.rstrip(b" \n") == xxh3(body).encode() + b'"}'
    footer = json.loads(body + b"}")
    assert (footer["n_bytes"], footer["n_rows"]) == (len(data), len(recipe["token_rows"]))
    own = json.loads(member(data, footer["manifest"]))
    assert own["recipe"] == recipe
    assert own["recipe_sha256"] == sha256(canonical(recipe))
    index = table(member(data, footer["index"]), INDEX)
    has_some = recipe["packing"] != "none" or recipe.get("task") == "preference"
    segments = table(member(data, footer["segments"]), SEGMENTS) if has_some else None
    samples = [read_sample(data, row, i, footer["n_rows"]) for i, row in enumerate(index)]
    for i, (sample, row) in enumerate(zip(samples, index, strict=True)):
        lengths = [len(sample["input_ids"])]
        if segments is not None:
            mine = segments[segments["sample"] == i]
            lengths = mine["length"].tolist()
            assert row_cut(index, i) == mine["n_cut"].sum()
            sample["rows"] = [*zip(mine["source"], mine["record"], strict=True)]
            if recipe.get("task") == "preference":
                check_pair(sample, row, mine)
        sample["label"] = bool(row["flags"] & 1)
        sample["position_ids"] = np.concatenate([np.arange(n) for n in lengths])
        check_sizes(sample, row, lengths, recipe["images"])
    return samples


def check_pair(sample: Sample, row: Any, segments: NDArray[np.void]) -> None:
    """Section 6.3: a prompt with the chosen answer, the same prompt with the rejected one."""
    assert segments["first"].tolist() == [0, 0]
    assert segments["n_images"].tolist() == [row["n_images"]] * 2
    begins = []
    for start, length in zip(segments["start"], segments["length"], strict=True):
        ids, labels = (sample[name][start : start + length] for name in ("input_ids", "labels"))
        begins.append(ids[: int(np.argmax(labels != -100))].tolist())
        assert labels.tolist() == [-100] * len(begins[-1]) + ids[len(begins[-1]) :].tolist()
    assert begins[0] == begins[1]


def row_cut(index: NDArray[np.void], i: int) -> int:
    return int(index["n_cut"][i])


def read_sample(data: bytes, row: Any, number: int, n_rows: int) -> Sample:
    """Sections 5.1, 6.1 and 6.2."""
    span = data[int(row["offset"]) : int(row["offset"] + row["span"])]
    assert xxhash.xxh3_64_intdigest(span) == int(row["hash"])
    n = int(row["n_tokens"])
    tokens = np.frombuffer(span[640 : 640 + 4 * n_rows * n], "<i4").reshape(n_rows, n)
    sample: Sample = {"input_ids": tokens[0], "labels": tokens[1], "images": [], "meta": None}
    sample["rows"] = [(row["source"], row["record"])]
    at = 0
    while at < len(span):
        name = span[at : at + 100].rstrip(b"\0").decode()
        size = int(span[at + 124 : at + 135], 8)
        assert name.startswith(f"{number:08d}.")
        content = span[at + 512 : at + 512 + size]
        if name.endswith(".json"):
            sample["meta"] = json.loads(content)
        elif not name.endswith(".npy"):
            sample["images"].append(content)
        at += 512 + -(-size // 512) * 512
    assert len(sample["images"]) == row["n_images"]
    return sample


def check_sizes(
    sample: Sample, row: Any, lengths: list[int], images: dict[str, Any] | None
) -> None:
    """Section 6.2: what the row is to the model."""
    per_image = images["image_tokens"] if images else 1
    is_image = sample["input_ids"] == (images["image_token"] if images else 0)
    is_image &= bool(images)
    ends = np.cumsum(lengths)
    places = [
        n + int(is_image[end - n : end].sum()) * (per_image - 1)
        for n, end in zip(lengths, ends.tolist(), strict=True)
    ]
    assert row["length"] == sum(places)
    assert row["cost2"] == sum(n * n for n in places)
    assert row["n_image_tokens"] == int(is_image.sum()) * per_image
    assert row["n_supervised"] == int((sample["labels"] != -100).sum())
    assert row["n_first"] == sum(
        sample["labels"][end - n] != -100 for n, end in zip(lengths, ends.tolist(), strict=True)
    )


U4, U8 = "<u4", "<u8"
INDEX = [(name, U8) for name in ("offset", "span", "record", "hash", "cost2")] + [
    (name, U4)
    for name in (
        *("n_tokens", "length", "n_supervised", "n_images", "n_image_tokens"),
        *("n_cut", "source", "piece", "flags", "n_first"),
    )
]
SEGMENTS = [
    *((name, U4) for name in ("sample", "start", "length", "source")),
    ("record", U8),
    *((name, U4) for name in ("first", "n_images", "piece", "n_cut")),
]


def table(data: bytes, fields: list[tuple[str, str]]) -> NDArray[np.void]:
    """Section 6: NumPy's format 1.0, the header as numpy.save writes it."""
    length = 10 + int.from_bytes(data[8:10], "little")
    assert data[:8] == b"\x93NUMPY\x01\x00"
    assert f"'descr': {fields!r}" in data[10:length].decode()
    return np.frombuffer(data[length:], np.dtype(fields))


def member(data: bytes, place: list[Any]) -> bytes:
    """Section 6.4: [offset, size, xxh3]."""
    content = data[place[0] : place[0] + place[1]]
    assert xxh3(content) == place[2]
    return content


def canonical(value: object) -> bytes:
    """Section 11.1."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def xxh3(data: bytes) -> str:
    return f"{xxhash.xxh3_64_intdigest(data):016x}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": "best-fit", "compression": "zstd:1"},
        {"packing": "concat", "shard_size": 20_000},
    ],
)
def test_the_document_is_enough_for_text(tmp_path: Path, options: dict[str, Any]) -> None:
    """What the reader finds is what ShardTable gives, and every row that was kept is there."""
    from shardkit import ShardTable

    source = write_json(tmp_path / "rows.json", alpaca_rows(120, n_bad=7))
    pack_small(source, tmp_path / "out", **options)
    manifest, samples = read_dataset(tmp_path / "out")
    theirs = ShardTable(tmp_path / "out")
    assert len(samples) == len(theirs)
    for mine, other in zip(samples, theirs, strict=True):
        for name in ("input_ids", "labels", *(["position_ids"] if "packing" in options else [])):
            assert mine[name].tolist() == other[name].tolist()
    rows = {row for sample in samples for row in sample["rows"]}
    assert len(rows) == sum(source["n_kept"] for source in manifest["sources"])


def test_the_document_is_enough_for_preferences(tmp_path: Path) -> None:
    """Pairs are two documents of one prompt, with pictures too; labelled answers have a bit."""
    from shardkit import ShardTable

    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    rows: list[dict[str, Any]] = [
        {"prompt": f"q {i}", "chosen": "yes " * (i + 1), "rejected": "no"} for i in range(9)
    ]
    rows[4]["image"] = "a.png"
    source = write_json(tmp_path / "rows.json", rows)
    pack_small(
        source, tmp_path / "a", task="preference", image_root=tmp_path / "images", image_tokens=9
    )
    _, samples = read_dataset(tmp_path / "a")
    for mine, other in zip(samples, ShardTable(tmp_path / "a"), strict=True):
        for name in ("input_ids", "labels"):
            both = [other[f"{side}_{name}"].tolist() for side in ("chosen", "rejected")]
            assert mine[name].tolist() == both[0] + both[1]
        lengths = [len(other[f"{side}_labels"]) for side in ("chosen", "rejected")]
        assert mine["position_ids"].tolist() == [*range(lengths[0]), *range(lengths[1])]
    answers = [{"prompt": "q", "completion": f"a {i}", "label": i % 2 == 0} for i in range(5)]
    pack_small(write_json(tmp_path / "kto.json", answers), tmp_path / "b", task="kto")
    _, samples = read_dataset(tmp_path / "b")
    assert [sample["label"] for sample in samples] == [True, False, True, False, True]


def test_the_document_is_enough_for_pictures(tmp_path: Path) -> None:
    """Pictures, their names and sizes, and lengths in the model."""
    source = write_llava(tmp_path, 20)
    pack_small(
        source, tmp_path / "out", image_root=tmp_path / "images", image_tokens=9, packing="best-fit"
    )
    _, samples = read_dataset(tmp_path / "out")
    stored = [data for sample in samples for data in sample["images"]]
    files = [path.read_bytes() for path in (tmp_path / "images").iterdir()]
    assert sorted(stored) == sorted(files)
    for sample in samples:
        if sample["images"]:
            assert len(sample["meta"]["images"]) == len(sample["images"])
