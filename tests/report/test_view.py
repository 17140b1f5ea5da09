"""One sample as text: what has loss, which images, and how a sample is named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from later import later_shard
from make_samples import make_samples
from records import pack_small, write_llava

from shardkit.dataset import Dataset, load_manifest, open_dataset
from shardkit.errors import UsageError
from shardkit.format.canonical import xxh3_hex
from shardkit.report import find_sample, save_images, view_sample
from shardkit.storage.store import LocalStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight LLaVA rows, packed into `packs`, and not packed into `plain`, in several shards."""
    folder = tmp_path_factory.mktemp("view")
    source = write_llava(folder, 8)
    options = {"image_root": folder / "images", "shard_size": 10_000}
    pack_small(source, folder / "plain", **options)
    pack_small(source, folder / "packs", packing="best-fit", max_length=100, **options)
    return folder


def test_a_sample_is_its_row(folder: Path) -> None:
    """Question without loss, answer with it; <image> for each placeholder; ids and names."""
    rows = json.loads((folder / "llava.json").read_text())
    dataset = open_dataset(folder / "plain")
    for position, row in enumerate(rows):
        number, at = find_sample(dataset.manifest, str(position))
        view = view_sample(dataset, number, at)
        (segment,) = view.segments
        assert (segment.source, segment.row, segment.first) == ("llava.json", position, 0)
        assert segment.n_tokens == view.n_tokens
        names = row.get("image", [])
        names = [names] if isinstance(names, str) else names
        assert [image.name for image in view.images] == names
        (before, no_loss), (answer, loss) = segment.pieces[:2]
        assert (no_loss, loss) == (False, True)
        assert before.count("<image>") == len(names)
        assert row["conversations"][0]["value"].replace("<image>", "").strip() in before
        assert answer.startswith(row["conversations"][1]["value"])
        if names:
            assert segment.id == row["id"]


def test_images_are_saved_as_they_were(folder: Path, tmp_path: Path) -> None:
    """Every image of every pack, in the order of the segments, byte for byte."""
    rows = json.loads((folder / "llava.json").read_text())
    dataset = open_dataset(folder / "packs")
    n_saved = 0
    for position in range(dataset.manifest.n_samples):
        number, at = find_sample(dataset.manifest, str(position))
        view = view_sample(dataset, number, at)
        names = [rows[segment.row].get("image", []) for segment in view.segments]
        names = [n for one in names for n in ([one] if isinstance(one, str) else one)]
        paths = save_images(dataset, number, at, tmp_path / "saved")
        assert [image.name for image in view.images] == names
        for name, path in zip(names, paths, strict=True):
            assert path.read_bytes() == (folder / "images" / name).read_bytes()
        assert [image.n_bytes for image in view.images] == [p.stat().st_size for p in paths]
        n_saved += len(paths)
    assert n_saved == dataset.manifest.n_images == len(list((tmp_path / "saved").iterdir())) == 8


def test_a_sample_by_name(folder: Path) -> None:
    """Position and SHARD/KEY name the same one; what is not there is refused."""
    manifest = open_dataset(folder / "plain").manifest
    places = [(n, i) for n, shard in enumerate(manifest.shards) for i in range(shard.n_samples)]
    assert len(manifest.shards) > 1
    for position, (number, row) in enumerate(places):
        shard = manifest.shards[number].name
        for wanted in (position, f"{shard}/{row:08d}", f"{shard[:-4]}/{row}"):
            assert find_sample(manifest, str(wanted)) == (number, row)
    for wrong in (
        "8",
        "-1",
        "x",
        "shard-00000/00000099",
        "shard-00099/0",
        "shard-00000/x",
        "²",
        "shard-00000/²",
    ):
        with pytest.raises(UsageError, match="no such sample"):
            find_sample(manifest, wrong)


def test_a_shard_of_a_later_version_is_shown(folder: Path, tmp_path: Path) -> None:
    """Further members and token rows of a sample are passed over, as loaders do."""
    samples = make_samples([4, 70], with_images=True)
    later_shard(tmp_path / "shard-00000.tar", samples)
    data = (tmp_path / "shard-00000.tar").read_bytes()
    whole = load_manifest(folder / "plain")
    entry = msgspec.structs.replace(
        whole.shards[0], name="shard-00000.tar", n_samples=2, n_bytes=len(data),
        footer=xxh3_hex(data[-1536:-1024]),
    )  # fmt: skip
    shown = Dataset(msgspec.structs.replace(whole, shards=[entry]), LocalStore(str(tmp_path)))
    assert len(view_sample(shown, 0, 1).images) == 1
    (path,) = save_images(shown, 0, 1, tmp_path / "images")
    assert path.read_bytes() == samples.images_of(1)[0].data
