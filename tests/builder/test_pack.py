"""Packing: what the output folder may hold, what is refused, what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import zstandard
from PIL import Image
from records import TOKENIZER, alpaca_rows, digests, pack_small, stop_after, write_json, write_llava

from shardkit import load_manifest, verify
from shardkit.builder import make_plan
from shardkit.builder.build_engines import engine_options
from shardkit.builder.options import (
    AppendOptions,
    PackOptions,
)
from shardkit.builder.options.arguments import AppendArguments, PackArguments
from shardkit.errors import BuildConflict, BuildFailed, UsageError
from shardkit.format.builds import builds_of
from shardkit.format.shard import Shard
from shardkit.images.files import size_below


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_json(tmp_path / "rows.json", alpaca_rows(120, n_bad=3))


def test_foreign_files_are_never_touched(source: Path, tmp_path: Path) -> None:
    """A folder with anything else in it is refused, with --overwrite too."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(BuildConflict, match=r"notes\.txt"):
            pack_small(source, out, overwrite=overwrite)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_card_in_the_folder_is_no_foreign_file(source: Path, tmp_path: Path) -> None:
    """With the hub's README.md beside a dataset the same pack finds it, another one replaces it,
    and the card stays."""
    out = tmp_path / "out"
    first = pack_small(source, out)
    (out / "README.md").write_text("card")
    assert pack_small(source, out).fingerprint == first.fingerprint
    assert pack_small(source, out, max_length=32, overwrite=True).fingerprint != first.fingerprint
    assert (out / "README.md").read_text() == "card"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"max_length": 32}, "max_length: 64 before, 32 now"),
        ({"template": "vicuna"}, "template"),
        ({"packing": "concat"}, "packing: none before, concat now"),
        ({"shuffle_seed": 1}, "shuffle_seed"),
    ],
)
def test_another_dataset_in_the_folder_is_refused(
    source: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    """Other options on a finished dataset: refused, saying what differs; --overwrite replaces."""
    out = tmp_path / "out"
    pack_small(source, out)
    before = digests(out)
    with pytest.raises(BuildConflict, match=word):
        pack_small(source, out, **change)
    assert digests(out) == before
    pack_small(source, out, overwrite=True, **change)
    assert digests(out) != before
    assert verify(out).findings == []


def test_changed_inputs_of_an_unfinished_build_are_noticed(source: Path, tmp_path: Path) -> None:
    """A build that stopped half-way is not continued with other rows."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        pack_small(source, out, on_progress=stop_after(50))
    write_json(source, alpaca_rows(121))
    with pytest.raises(BuildConflict, match="sources"):
        pack_small(source, out)
    assert pack_small(source, out, overwrite=True).sources[0].n_rows == 121


def test_two_packs_of_one_folder_are_refused(source: Path, tmp_path: Path) -> None:
    """While one process holds the folder, another one is told so."""
    out = tmp_path / "out"
    (out / ".building").mkdir(parents=True)
    code = """
import sys, time, pathlib
from shardkit.builder.folder import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(out / ".building")], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(BuildConflict, match="another shardkit"):
        pack_small(source, out)
    holder.kill()
    holder.communicate()
    assert pack_small(source, out).n_samples == 117


def test_shards_have_about_the_size_asked_for(source: Path, tmp_path: Path) -> None:
    """No shard is larger than --shard-size unless one sample is; nothing is lost between them."""
    manifest = pack_small(source, tmp_path / "out", shard_size=20_000, part_rows=1000)
    assert len(manifest.shards) > 3
    assert all(shard.n_bytes < 20_000 + 5_000 for shard in manifest.shards)
    assert verify(tmp_path / "out").findings == []


def test_shuffled_rows_are_a_permutation(source: Path, tmp_path: Path) -> None:
    """--shuffle-seed changes the order of rows, and only that."""
    plain = pack_small(source, tmp_path / "plain")
    mixed = pack_small(source, tmp_path / "mixed", shuffle_seed=5)
    orders = []
    for name, manifest in (("plain", plain), ("mixed", mixed)):
        shards = [Shard.open(tmp_path / name / entry.name) for entry in manifest.shards]
        orders.append(np.concatenate([shard.index["record"] for shard in shards]).tolist())
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == orders[0]


def test_many_inputs_keep_their_names_and_rows(tmp_path: Path) -> None:
    """Array, JSONL, gzip and zstd beside one another; each has its line in the ledger."""
    rows = alpaca_rows(40)
    write_json(tmp_path / "a.json", rows[:10])
    import json

    lines = "\n".join(json.dumps(row) for row in rows[10:20]) + "\n\n"
    (tmp_path / "b.jsonl").write_text(lines + "{broken\n")
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows[20:30]))
    subprocess.run(["gzip", "-k", tmp_path / "c.jsonl"], check=True)
    write_json(tmp_path / "d.json", rows[30:])
    (tmp_path / "d.json.zst").write_bytes(zstandard.compress((tmp_path / "d.json").read_bytes()))
    inputs = [tmp_path / name for name in ("a.json", "b.jsonl", "c.jsonl.gz", "d.json.zst")]
    manifest = pack_small(inputs, tmp_path / "out")
    assert [source.name for source in manifest.sources] == [path.name for path in inputs]
    assert [source.n_kept for source in manifest.sources] == [10] * 4
    assert manifest.sources[1].rejected == {"bad_json": 1}
    assert verify(tmp_path / "out", sources=inputs).findings == []


def test_duplicates_and_empty_answers_are_pointed_out(tmp_path: Path) -> None:
    """Rows worth a look are counted with their first examples, not removed."""
    rows = alpaca_rows(10)
    rows += [rows[2], {"instruction": "a", "input": "", "output": ""}]
    manifest = pack_small(write_json(tmp_path / "rows.json", rows), tmp_path / "out")
    assert manifest.checks["duplicate"] == {"n": 1, "examples": [["rows.json", 10]]}
    assert manifest.checks["empty_answer"] == {"n": 1, "examples": [["rows.json", 11]]}


def test_duplicates_are_found_in_buckets_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few hashes are held at once: the same count, the same first examples in row order."""
    from shardkit.builder import ledger

    rows = alpaca_rows(60)
    rows += [rows[i] for i in (50, 3, 3, 41, 7, 8, 9)]
    source = write_json(tmp_path / "rows.json", rows)
    expected = {"n": 7, "examples": [["rows.json", row] for row in range(60, 65)]}
    assert pack_small(source, tmp_path / "one").checks["duplicate"] == expected
    monkeypatch.setattr(ledger, "BUCKET_ROWS", 2)
    assert pack_small(source, tmp_path / "many").checks["duplicate"] == expected


def test_what_a_person_reads_at_the_end(tmp_path: Path) -> None:
    """The command's last words and inspect name each kind of odd row with its first examples;
    the manifest has the same numbers."""
    rows: list[Any] = alpaca_rows(10)
    rows += [rows[2], {"instruction": "a", "input": "", "output": ""}, {"instruction": "a"}]
    rows += [{"instruction": "word " * 200, "input": "", "output": "x"}]
    rows += [{"instruction": "a", "input": "", "output": "word " * 200}] * 2
    source, out = write_json(tmp_path / "rows.json", rows), tmp_path / "out"
    words = [sys.executable, "-m", "shardkit"]
    options = ["--tokenizer", str(TOKENIZER), "--template", "qwen_chat", "--max-length", "64"]
    done = subprocess.run(
        [*words, "pack", str(source), "--out", str(out), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = subprocess.run(
        [*words, "inspect", str(out)], capture_output=True, text=True, check=True
    ).stdout
    for line in (
        "duplicate rows           2; first: rows.json rows 10, 15",
        "empty answers            1; first: rows.json row 11",
        "rejected: no label left  1; first: rows.json row 13",
        "rejected: bad record     1; first: rows.json row 12",
    ):
        assert line in done.stdout
        assert line in seen
    assert "rejected: placeholders   0" in seen
    n_cut = load_manifest(out).sources[0].n_cut_tokens
    for text in (done.stdout, seen):
        assert f"2 (14.3 % of the kept ones): {n_cut} tokens cut" in text
        assert f"at most {n_cut // 2} of a row" in " ".join(text.split())


def test_images_are_stored_as_they_are_and_once_per_row(tmp_path: Path) -> None:
    """Image bytes in the shard are those of the file; verify decodes them."""
    source = write_llava(tmp_path, 20)
    manifest = pack_small(
        source, tmp_path / "out", image_root=tmp_path / "images", max_length=128, image_tokens=4
    )
    assert manifest.n_images == 20
    shard = Shard.open(tmp_path / "out" / manifest.shards[0].name)
    meta = shard.meta(1)
    assert meta is not None
    assert [bytes(data) for data in shard.images(1)] == [
        (tmp_path / "images" / image.name).read_bytes() for image in meta.images
    ]
    assert verify(tmp_path / "out").findings == []


def test_images_can_be_made_smaller(tmp_path: Path) -> None:
    """--image-size stores square JPEGs of that size."""
    source = write_llava(tmp_path, 4)
    for fit in ("pad", "crop", "resize"):
        manifest = pack_small(
            source, tmp_path / fit, image_root=tmp_path / "images", image_size=16, image_fit=fit
        )
        shard = Shard.open(tmp_path / fit / manifest.shards[0].name)
        meta = shard.meta(0)
        assert meta is not None
        assert [(image.width, image.height) for image in meta.images] == [(16, 16)]
        assert bytes(shard.images(0)[0][:3]) == b"\xff\xd8\xff"
        assert verify(tmp_path / fit).findings == []


def test_large_pictures_can_be_stored_smaller(tmp_path: Path) -> None:
    """--store-max-pixels: those above it alone, in their shape; what is saved is counted."""
    source = write_llava(tmp_path, 6)
    folder = tmp_path / "images"
    sizes = {}
    for i, path in enumerate(sorted(folder.iterdir())):
        size = [(400, 100), (20, 20), (100, 300)][i % 3]
        Image.effect_noise(size, 50).convert("RGB").save(path, "PNG")
        sizes[path.name] = size, path.stat().st_size
    options: dict[str, Any] = {"image_root": folder, "store_max_pixels": 10_000}
    manifest = pack_small(source, tmp_path / "out", **options)
    assert manifest.recipe["images"]["store_max_pixels"] == 10_000
    saved: list[int] = []
    shard = Shard.open(tmp_path / "out" / manifest.shards[0].name)
    for row in range(shard.n_samples):
        meta = shard.meta(row)
        for image, data in zip(meta.images if meta else (), shard.images(row), strict=False):
            (width, height), n_bytes = sizes[image.name]
            if width * height <= 10_000:
                assert bytes(data) == (folder / image.name).read_bytes()
                continue
            assert 9_500 < image.width * image.height <= 10_000
            assert image.width / image.height == pytest.approx(width / height, rel=0.03)
            saved.append(n_bytes - len(data))
    notes = manifest.checks["notes"]
    assert notes["pictures_made_smaller"] == len(saved) > 0
    assert notes["picture_bytes_saved"] == sum(saved) > 0
    again = pack_small(source, tmp_path / "again", workers=2, part_rows=2, **options)
    assert again.checks["notes"] == notes
    assert verify(tmp_path / "out", sources=[source]).findings == []
    plain = pack_small(source, tmp_path / "plain", image_root=folder)
    assert "store_max_pixels" not in plain.recipe["images"]
    with pytest.raises(UsageError, match="both say"):
        pack_small(source, tmp_path / "no", image_size=16, **options)


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (3, 3), (640, 480), (2000, 2)])
@pytest.mark.parametrize("most", [1, 2, 7, 100, 10_000])
def test_no_shape_is_above_its_pixels(size: tuple[int, int], most: int) -> None:
    """Strips too: at least one pixel wide, and never more pixels than asked for."""
    width, height = size_below(size, most)
    assert min(width, height) >= 1
    assert width * height <= most


@pytest.mark.parametrize(
    "options",
    [
        {"packing": "concat", "max_length": None},
        {"max_length": 0},
        {"compression": "lz4"},
        {"source_format": "csv"},
        {"image_size": 10},
        {"image_quality": 0, "image_root": Path()},
        {"workers": 0},
        {"part": (3, 2)},
    ],
)
def test_options_that_cannot_be_are_refused(
    source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Contradictions are refused by name."""
    with pytest.raises(UsageError):
        pack_small(source, tmp_path / "out", **options)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_disk_that_is_full(source: Path, tmp_path: Path) -> None:
    """On a small tmpfs: a clear message, nothing half-visible; with space the same call ends."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs rights that this process has not")
    try:
        (disk / "ballast").write_bytes(bytes(900_000))
        with pytest.raises(BuildFailed, match="disk is full"):
            pack_small(source, disk / "out")
        assert not (disk / "out/manifest.json").exists()
        (disk / "ballast").unlink()
        pack_small(source, disk / "out")
        pack_small(source, tmp_path / "whole")
        assert digests(disk / "out") == digests(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_the_dataset_carries_its_tokenizer(source: Path, tmp_path: Path) -> None:
    """Its tokenizer folder loads as the same tokenizer."""
    from shardkit.tokens import load_tokenizer

    pack_small(source, tmp_path / "out")
    identity = load_manifest(tmp_path / "out").recipe["tokenizer"]
    assert load_tokenizer(tmp_path / "out/tokenizer").identity.to_json() == identity
    assert load_tokenizer(TOKENIZER).identity.to_json() == identity


def test_the_typed_arguments_are_those_of_the_options() -> None:
    """The TypedDicts list exactly the fields of the options, with their types."""
    of_build = [get_type_hints(options) for options in engine_options()]
    building = {name: hint for hints in of_build for name, hint in hints.items()}
    assert get_type_hints(PackArguments) == building | get_type_hints(PackOptions)
    assert get_type_hints(AppendArguments) == building | get_type_hints(AppendOptions)


def test_ids_of_rows_reach_packs(tmp_path: Path) -> None:
    """Those of rows with a picture, and those of one question and one answer beside them."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {
            "id": f"row-{i}",
            "messages": [
                {"role": "user", "content": "<image>What?" if i == 4 else "Hi"},
                {"role": "assistant", "content": "Hello."},
            ],
        }
        for i in range(9)
    ]
    rows[4]["images"] = ["a.png"]
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, some in zip(files, (rows[4:5], rows[:4] + rows[5:]), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in some))
    pack_small(files, tmp_path / "out", packing="concat", max_length=512, image_root=tmp_path)
    (path,) = (tmp_path / "out").glob("shard-*.tar")
    meta = Shard.open(path).meta(0)
    assert meta is not None
    assert sorted(map(str, meta.ids)) == [f"row-{i}" for i in range(9)]


def test_settings_of_a_later_minor_version_are_ignored(tmp_path: Path) -> None:
    """The options of a dataset again, when its recipe names more than this version knows."""
    pack_small(write_llava(tmp_path, 4), tmp_path / "out", image_root=tmp_path / "images")
    manifest = load_manifest(tmp_path / "out")
    (build,) = builds_of(manifest)
    again = {"tokenizer": TOKENIZER, "image_root": tmp_path}
    expected = PackOptions.of(manifest, build, **again)
    manifest.recipe["images"]["image_sharpness"] = 3
    manifest.recipe["dropout"] = 0.5
    assert PackOptions.of(manifest, build, **again) == expected


def test_why_a_format_was_chosen(tmp_path: Path) -> None:
    """The sentence is that of the first file; it was once the last one's, which had other words."""
    llava = write_llava(tmp_path, 4)
    chats = write_json(tmp_path / "rows.json", [{"messages": [{"role": "user", "content": "a"}]}])

    def why(*files: Path) -> str:
        options = PackOptions(
            tokenizer=TOKENIZER, template="qwen_chat", image_root=tmp_path / "images"
        )
        (tmp_path / "spool").mkdir(exist_ok=True)
        return make_plan(files, options, spool=tmp_path / "spool").why_format

    assert why(llava, chats) == why(llava)
    assert why(chats, llava) == why(chats)
    assert why(chats) != why(llava)
