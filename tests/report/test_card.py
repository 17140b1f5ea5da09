"""The dataset card: the hub's own reader takes it, and its figures are the manifest's."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from records import alpaca_rows, digests, pack_small, write_json, write_llava
from shardkit_cli.main import main

from shardkit import verify
from shardkit.builder import merge_datasets
from shardkit.dataset import open_dataset
from shardkit.errors import BadManifest, CorruptShard
from shardkit.integrations.hub_folder import export_hub_folder
from shardkit.report.card import CardOptions, make_card, size_category

KINDS = ("hf", "jsonl", "llamafactory", "hub-folder")
HOSTILE = "a|b <script>x</script> `c` [d](javascript:e)\n---\nlicense: mit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    pack_small(write_json(folder / "rows.json", alpaca_rows(40, n_bad=4)), folder / "text")
    pack_small(write_json(folder / "more.json", alpaca_rows(4, seed=1)), folder / "more")
    pack_small(write_llava(folder, 8), folder / "llava", image_root=folder / "images")
    return folder


def header_of(text: str) -> dict[str, Any]:
    """The header as huggingface_hub reads it."""
    from huggingface_hub import DatasetCard

    data = DatasetCard(text).data
    return dict(data.to_dict())  # type: ignore[no-untyped-call]


def test_the_hub_reads_the_header(folder: Path) -> None:
    """huggingface_hub parses the card, and finds what the hub shows and how it reads the data."""
    text = make_card(open_dataset(folder / "llava"), CardOptions("Pictures", "mit", ["en", "zh"]))
    data = header_of(text)
    assert data["pretty_name"] == "Pictures"
    assert (data["license"], data["language"]) == ("mit", ["en", "zh"])
    assert data["task_categories"] == ["image-text-to-text"]
    assert data["size_categories"] == ["n<1K"]
    (config,) = data["configs"]
    assert config["data_files"] == [{"split": "train", "path": "shard-*.tar"}]
    assert "license" not in header_of(make_card(open_dataset(folder / "text")))


def test_a_hostile_title_stays_text(folder: Path) -> None:
    """Neither the header nor a table nor the page's HTML is left."""
    text = make_card(open_dataset(folder / "text"), CardOptions(title=HOSTILE))
    assert header_of(text)["pretty_name"] == HOSTILE
    assert "license" not in header_of(text)
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "[d]" not in body


def test_figures_are_those_of_the_manifest(folder: Path) -> None:
    """Rows, reasons and tokens stand in the text."""
    dataset = open_dataset(folder / "text")
    text = make_card(dataset)
    assert "36 of 40 rows" in text
    assert f"{dataset.manifest.n_tokens:,} tokens" in text
    assert re.search(r"^\| rows.json \| 40 \| 36 \| 4 \| 0 \|$", text, re.M)
    for reason in dataset.manifest.sources[0].rejected:
        assert reason in text


def test_sizes_have_the_hubs_words() -> None:
    """Borders belong to the larger class."""
    found = [size_category(n) for n in (0, 999, 1000, 10**6, 10**9, 10**13)]
    assert found == ["n<1K", "n<1K", "1K<n<10K", "1M<n<10M", "1B<n<10B", "n>1T"]


def test_a_hub_folder_is_the_dataset_with_its_card(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file is there byte for byte, verify has no complaint, and `datasets` reads it."""
    import datasets

    out = tmp_path / "my hub"
    assert main(["export", str(folder / "text"), "--to", "hub-folder", str(out)]) == 0
    assert f"OWNER/NAME '{out}'" in capsys.readouterr().err
    copied = digests(out)
    assert "README.md" in copied
    copied.pop("README.md")
    assert copied == digests(folder / "text")
    capsys.readouterr()
    assert main(["verify", str(out)]) == 0
    assert "README" not in capsys.readouterr().out
    loaded = datasets.load_dataset(
        "webdataset", data_files=f"{out}/shard-*.tar", cache_dir=str(tmp_path / "cache"),
        split="train", streaming=True,
    )  # fmt: skip
    assert next(iter(loaded))["tokens.npy"]
    assert main(["export", str(folder / "text"), "--to", "hub-folder", str(out)]) == 1


def linked(dataset: Path, folder: Path) -> Path:
    """The dataset as the hub's cache has it: every file a relative link to a blob elsewhere."""
    for number, file in enumerate(sorted(dataset.rglob("*.*"))):
        blob, name = folder / "blobs" / str(number), folder / "snapshot" / file.relative_to(dataset)
        for path in (blob, name):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        name.symlink_to(os.path.relpath(blob, name.parent))
    return folder / "snapshot"


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    """What is made of a download of the hub holds the shards, not links that lead nowhere."""
    snapshot = linked(folder / "text", tmp_path)
    export_hub_folder(snapshot, tmp_path / "hub")
    merge_datasets([snapshot, folder / "more"], tmp_path / "merged")
    for made in (tmp_path / "hub", tmp_path / "merged"):
        assert not any(path.is_symlink() for path in made.iterdir())
        assert verify(made).problems == []


@pytest.mark.parametrize("name", ["shard-00000.tar", "rejects.jsonl", "tokenizer/tokenizer.json"])
def test_a_damaged_dataset_is_not_laid_out(folder: Path, tmp_path: Path, name: str) -> None:
    """A file that is cut, or is not there, is named; nothing is left behind."""
    shutil.copytree(folder / "text", tmp_path / "data")
    damaged, out = tmp_path / "data" / name, tmp_path / "hub"
    damaged.write_bytes(damaged.read_bytes()[:-512])
    for _ in range(2):
        with pytest.raises((CorruptShard, BadManifest), match=name):
            export_hub_folder(tmp_path / "data", out)
        damaged.unlink(missing_ok=True)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["hf", "hub-folder"])
def test_an_output_that_is_a_file(
    folder: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said so."""
    (tmp_path / "file").write_text("mine")
    assert main(["export", str(folder / "text"), "--to", kind, str(tmp_path / "file")]) == 1
    assert "the output is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *(f"export DATA --to {kind} s3://bucket/out" for kind in KINDS),
        *("repack DATA --out s3://bucket/out", "merge DATA MORE --out hf://datasets/a/b"),
        *("report DATA --out s3://b/r.html", "card DATA --out s3://b/c.md"),
        *("plan DATA --out s3://b/p.md", "merge s3://b/parts", "append s3://b/data DATA"),
        "repair s3://b/data --source DATA",
    ],
)
def test_a_url_is_no_folder_of_its_name(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
) -> None:
    """What is written here alone refuses a URL; nothing lies in a folder s3: then."""
    monkeypatch.chdir(tmp_path)
    places = {"DATA": str(folder / "text"), "MORE": str(folder / "more")}
    assert main([places.get(word, word) for word in words.split()]) == 2
    assert "cannot be at a URL" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To stdout, or into a file."""
    assert main(["card", str(folder / "text")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("---\npretty_name:")
    assert main(["card", str(folder / "text"), "--out", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == shown
