"""Hostile image references and image files: each rejected by name, nothing outside is read."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from records import pack_small, write_json

from shardkit.conversation import Reason, Reject
from shardkit.images import ImageStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one good picture, beside a picture that nobody may read."""
    (tmp_path / "root/sub").mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "secret.png")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "root/ok.png")
    return tmp_path / "root"


def reason_of(root: Path, reference: str) -> str:
    found = ImageStore(root).load(reference)
    assert isinstance(found, Reject), f"{reference!r} was read"
    assert repr(reference)[:40] in found.detail or reference[:40] in found.detail
    return found.reason


@pytest.mark.parametrize(
    "reference",
    [
        "../secret.png",
        "sub/../../secret.png",
        "/etc/hostname",
        "{outside}/secret.png",
        "http://127.0.0.1:1/x.png",
        "file:///etc/hostname",
        "\0ok.png",
    ],
)
def test_a_reference_cannot_leave_the_root(root: Path, reference: str) -> None:
    """Dots, absolute paths, URLs and null bytes."""
    reference = reference.replace("{outside}", str(root.parent))
    assert reason_of(root, reference) == Reason.IMAGE_OUTSIDE_ROOT


def test_a_data_url_is_no_file(root: Path) -> None:
    """Readers decode pictures that a row holds; as the name of a file there is no such one."""
    assert reason_of(root, "data:image/png;base64,AAAA") == Reason.IMAGE_MISSING


def test_a_link_cannot_leave_the_root(root: Path) -> None:
    """A link to a file or folder outside is rejected; one that stays inside is followed."""
    (root / "file.png").symlink_to(root.parent / "secret.png")
    (root / "up").symlink_to(root.parent)
    (root / "inside.png").symlink_to("ok.png")
    (root / "loop.png").symlink_to("loop.png")
    assert reason_of(root, "file.png") == Reason.IMAGE_OUTSIDE_ROOT
    assert reason_of(root, "up/secret.png") == Reason.IMAGE_OUTSIDE_ROOT
    assert reason_of(root, "loop.png") == Reason.IMAGE_MISSING
    assert not isinstance(ImageStore(root).load("inside.png"), Reject)


def test_what_is_no_regular_file_is_not_opened(root: Path) -> None:
    """A pipe would block for ever, a folder cannot be read."""
    os.mkfifo(root / "pipe.png")
    assert reason_of(root, "pipe.png") == Reason.IMAGE_MISSING
    assert reason_of(root, "sub") == Reason.IMAGE_MISSING


def test_a_file_of_many_bytes_is_not_read(root: Path) -> None:
    """A sparse file of 20 GB costs nothing on disk and would cost 20 GB of memory."""
    with open(root / "huge.jpg", "wb") as file:
        file.truncate(20 << 30)
    assert reason_of(root, "huge.jpg") == Reason.IMAGE_TOO_LARGE


def one_bit_png(path: Path, edge: int) -> None:
    """A black square of any size in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + (edge + 7) // 8)
    body = b"".join([*(packer.compress(row) for _ in range(edge)), packer.flush()])
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png)


@pytest.mark.parametrize("edge", [9_600, 30_000])
def test_a_decompression_bomb_is_not_decoded(root: Path, edge: int) -> None:
    """Just beyond Pillow's warning, and beyond its error: both are rejected from the header."""
    one_bit_png(root / "bomb.png", edge)
    assert (root / "bomb.png").stat().st_size < 200_000
    assert reason_of(root, "bomb.png") == Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"\x89PNG\r\n\x1a\n",
        b"%PDF-1.4\n",
        b"GIF89a",
    ],
)
def test_what_is_no_picture_is_named(root: Path, data: bytes) -> None:
    """An error page saved as .jpg, an empty file, a header alone."""
    (root / "page.jpg").write_bytes(data)
    assert reason_of(root, "page.jpg") == Reason.IMAGE_UNREADABLE


def test_ten_thousand_placeholders(root: Path, tmp_path: Path) -> None:
    """Rows with 10,000 marks are rejected with their numbers, or cut; their neighbours are kept."""
    marks = "<image>" * 10_000

    def row(question: str, images: object) -> dict[str, object]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a"}]
        return {"conversations": turns, "image": images}

    rows = [
        row("<image>\nq", "ok.png"),
        row(marks, ["ok.png", "ok.png"]),
        row(marks, None),
        row(marks, ["ok.png"] * 10_000),
        row("<image>\nq", "ok.png"),
    ]
    source = write_json(tmp_path / "rows.json", rows)

    manifest = pack_small(source, tmp_path / "out", image_root=root, max_rejects=None)

    lines = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    rejects = {reject["row"]: reject for reject in map(json.loads, lines)}
    assert {number: reject["reason"] for number, reject in rejects.items()} == {
        1: Reason.PLACEHOLDER_MISMATCH,
        2: Reason.PLACEHOLDER_MISMATCH,
        3: Reason.NO_SUPERVISED_TOKENS,
    }
    assert "10000 placeholders, 2 images" in rejects[1]["detail"]
    assert (manifest.n_samples, manifest.n_images) == (2, 2)
