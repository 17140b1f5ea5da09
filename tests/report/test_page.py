"""The report page: its figures are the dataset's, nothing leaves it, and nothing in it can run."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from records import TOKENIZER, alpaca_rows, pack_small, write_json, write_llava
from shardkit_cli.main import main
from synthetic import make_dataset

from shardkit.builder.merge import merge_datasets
from shardkit.dataset import Dataset, open_dataset
from shardkit.report.live.rejects import read_rejects
from shardkit.report.page import ReportOptions, facts, make_report
from shardkit.report.page.build import look
from shardkit.report.page.cards import Cards
from shardkit.report.page.marks import Marker

HOSTILE = "<script>window.planted=1</script><img src=x onerror=window.planted=1>\"'--></style>"


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def report_of(path: Path, **options: Any) -> str:
    return make_report(open_dataset(path), ReportOptions(**options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llava` with pictures, `packs` of text, and `hostile`, whose rows and file name attack."""
    folder = tmp_path_factory.mktemp("page")
    pack_small(write_llava(folder, 40), folder / "llava", image_root=folder / "images")
    rows = alpaca_rows(120, n_bad=6)
    rows[7]["output"] = "cut " * 400
    pack_small(write_json(folder / "rows.json", rows), folder / "packs", packing="concat")
    attack: list[Any] = [
        {"instruction": HOSTILE, "output": f"{HOSTILE} \u202e {i}"} for i in range(6)
    ]
    attack.append({"instruction": HOSTILE, "output": 5})
    source = write_json(folder / "<img src=x onerror=alert(1)>.json", attack)
    pack_small(source, folder / "hostile", system=HOSTILE, max_length=None)
    return folder


def test_figures_are_those_of_the_indexes(folder: Path) -> None:
    """Rows, tokens and pictures by source, lengths, fill and shares, against plain sums."""
    for name in ("llava", "packs"):
        dataset = open_dataset(folder / name)
        found, _ = look(dataset, ReportOptions())
        shards = [dataset.open_shard(i) for i in range(len(dataset.manifest.shards))]
        index = np.concatenate([shard.index for shard in shards])
        assert found.is_whole
        assert found.n_rows == len(index) == dataset.manifest.n_samples
        assert int(found.by_source[:, 1].sum()) == dataset.manifest.n_tokens
        assert int(found.by_source[:, 2].sum()) == dataset.manifest.n_images
        values, counts = found.lengths.result()
        assert int(counts.sum()) == found.n_rows
        assert values.tolist() == sorted(set(index["n_tokens"].tolist()))
        assert found.n_truncated == int(np.count_nonzero(index["n_cut"]))
        assert int(found.supervised.sum()) == found.n_rows
        if name == "packs":
            segments = np.concatenate([s.segments for s in shards if s.segments is not None])
            assert found.n_segments == len(segments)
            assert found.filled is not None
            full = np.count_nonzero(index["n_tokens"] == 64)
            assert int(found.filled[-1]) >= full > 0


def test_the_account_is_on_the_page(folder: Path) -> None:
    """Totals, every source, every reason with its first rows, and all checks."""
    page = Page(report_of(folder / "packs"))
    assert "114 of 120 rows" in page.text
    assert "rows.json row 19" in page.text
    manifest = open_dataset(folder / "packs").manifest
    for reason in manifest.sources[0].rejected:
        assert reason.replace("_", " ") in page.text
    assert "holds training data" in page.text
    assert manifest.fingerprint in page.text


def test_nothing_of_the_data_can_run(folder: Path) -> None:
    """Markup in rows, a file name, the system text and rejects stays text; one script is ours."""
    html = report_of(folder / "hostile")
    page = Page(html)
    assert page.count("script") == page.count("style") == 1
    assert page.count("img") == 0
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, "the policy forbids it"
    assert page.text.count(HOSTILE) >= 12
    assert "\u202e" not in html
    assert "\\u202e" in html
    (policy,) = (
        str(values["content"])
        for _, values in page.elements
        if values.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_page_needs_nothing_else(folder: Path) -> None:
    """No address but places in the page itself and pictures that it holds."""
    page = Page(report_of(folder / "llava"))
    assert page.count("img") > 10
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value)


def test_every_link_leads_somewhere(folder: Path) -> None:
    """Each anchor is there once, with the sample that SHARD/KEY names."""
    page = Page(report_of(folder / "llava", samples=20))
    ids = [values["id"] for _, values in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    wanted = {str(v["href"])[1:] for tag, v in page.elements if tag == "a"}
    assert wanted <= set(ids)
    assert "shard-00000/00000000" in wanted


def test_samples_are_of_every_kind(folder: Path) -> None:
    """Truncated ones and the longest are shown however rare; the same ones each time."""
    found, chooser = look(open_dataset(folder / "packs"), ReportOptions(samples=6))
    assert found.n_truncated
    chosen = chooser.chosen()
    assert len(chosen) == len(set(chosen)) == 6
    dataset = open_dataset(folder / "packs")
    cut = [dataset.open_shard(number).index["n_cut"][row] for number, row in chosen]
    assert max(cut) > 0
    assert chosen[0] == (0, 0)
    assert look(dataset, ReportOptions(samples=6))[1].chosen() == chosen


def test_no_text_and_no_images(folder: Path) -> None:
    """Without them the page holds no word of a sample and no picture."""
    html = report_of(folder / "llava", text=False, images=False)
    assert "What is" not in html
    assert "data:image" not in html
    assert "llava.json row 0" in html
    assert "What is" in report_of(folder / "llava")


def test_a_page_stays_small(folder: Path, tmp_path: Path) -> None:
    """Huge samples are cut with a note, and those beyond the budget are left out and counted."""
    rows = [{"instruction": "<&>" * 8000, "output": "yes"} for _ in range(30)]
    pack_small(write_json(tmp_path / "big.json", rows), tmp_path / "big", max_length=None)
    html = report_of(tmp_path / "big", samples=30, budget=200_000)
    assert "more tokens are not shown" in html
    assert len(html) < 500_000
    html = report_of(folder / "llava", samples=30, budget=20_000)
    assert "had no room in the page" in html


def test_only_shown_samples_are_read(tmp_path: Path) -> None:
    """A dataset whose other samples are all damaged still has its report: indexes are enough."""
    make_dataset(tmp_path / "data", [300, 300])
    dataset = open_dataset(tmp_path / "data")
    _, chooser = look(dataset, ReportOptions(samples=5))
    shown = set(chooser.chosen())
    n_damaged = 0
    for number, entry in enumerate(dataset.manifest.shards):
        shard = dataset.open_shard(number)
        offsets = (shard.index["offset"] + 700).tolist()
        data = bytearray((tmp_path / "data" / entry.name).read_bytes())
        for row, offset in enumerate(offsets):
            if (number, row) not in shown:
                data[offset] ^= 1
                n_damaged += 1
        (tmp_path / "data" / entry.name).write_bytes(data)
    assert n_damaged == 595
    assert "5 of 600" in " ".join(Page(report_of(tmp_path / "data", samples=5)).text.split())


DAMAGED_LINES = {
    "no JSON": b"{",
    "no UTF-8": b'{"source": "\xff", "row": 1, "reason": "x"}',
    "deep": b'{"more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGED_LINES)
def test_a_damaged_list_of_rejected_rows_is_read_around(tmp_path: Path, damage: str) -> None:
    """The page and the live view show the lines before the damaged one and after it."""
    out = tmp_path / "out"
    pack_small(write_json(tmp_path / "rows.json", alpaca_rows(30, n_bad=3)), out)
    lines = (out / "rejects.jsonl").read_bytes().splitlines()
    lines.insert(1, DAMAGED_LINES[damage])
    (out / "rejects.jsonl").write_bytes(b"\n".join(lines))
    dataset = open_dataset(out)

    assert sum(map(len, facts.first_rejects(dataset).values())) == 3
    assert len(read_rejects(dataset, 0).lines) == 3


def test_some_shards_stand_for_all(tmp_path: Path) -> None:
    """With --shards the page says that its charts are of some; totals stay those of all."""
    make_dataset(tmp_path / "data", [20] * 9)
    html = " ".join(report_of(tmp_path / "data", shards=3).split())
    assert "of 3 of 9 shards" in html
    assert "180 of 180 rows" in html


def test_runs_are_the_tokens(folder: Path) -> None:
    """Runs put together are the decoded tokens; their loss is that of the labels."""
    dataset = open_dataset(folder / "packs")
    marker, decoder = Marker(dataset), tokenizers.Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json")
    shard = dataset.open_shard(0)
    for row in range(20):
        ids, labels = shard.tokens(row)[:2]
        runs = marker.runs(ids, labels)
        text = decoder.decode(ids.tolist(), skip_special_tokens=False)
        assert "".join(run.text for run in runs) == text
        has_loss = [run.has_loss for run in runs for _ in range(run.n_tokens)]
        assert has_loss == (labels != -100).tolist()
        special = [run for run in runs if run.kind == "special"]
        assert all(run.n_tokens == 1 and run.text.startswith("<|") for run in special)


def test_pictures_are_told(folder: Path) -> None:
    """Name, stored size, tokens in the model, and a thumbnail, in the order of the sample."""
    rows = json.loads((folder / "llava.json").read_text())
    dataset = open_dataset(folder / "llava")
    shard = dataset.open_shard(0)
    maker = Cards(dataset, Marker(dataset))
    for row in range(8):
        names = rows[row].get("image", [])
        card = maker.card(shard, 0, row, 0)
        assert [p.name for p in card.pictures] == ([names] if isinstance(names, str) else names)
        assert all((p.source or "").startswith("data:image/jpeg") for p in card.pictures)
        assert all(p.tokens == "1 token" for p in card.pictures)


def test_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """It writes report.html where it is called, says so, and refuses a missing folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(folder / "packs")]) == 0
    assert capsys.readouterr().out.startswith("report.html: ")
    assert Page((tmp_path / "report.html").read_text()).count("article") == 40
    assert main(["report", str(folder / "packs"), "--out", "no/such/folder.html"]) == 2
    with pytest.raises(SystemExit) as caught:
        main(["report", str(folder / "packs"), "--samples", "-1"])
    assert caught.value.code == 2
    assert "--samples" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "inspect", "report"])
def test_looking_needs_no_torch(folder: Path, tmp_path: Path, command: str) -> None:
    """These commands run where torch and transformers cannot be imported."""
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from shardkit_cli.main import main
sys.exit(main([{command!r}, {str(folder / "llava")!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_dataset_without_tokenizer_has_numbers(tmp_path: Path) -> None:
    """Ids are shown where there is nothing to decode them with."""
    make_dataset(tmp_path / "data", [5], n_images={2: 1})
    dataset: Dataset = open_dataset(tmp_path / "data")
    html = make_report(dataset, ReportOptions())
    assert "1000 1002" in html
    assert "&lt;image&gt;" in html


def test_unread_fields_are_named(tmp_path: Path) -> None:
    """How many rows have some, and which."""
    rows = [{**row, "mood": "good"} for row in alpaca_rows(20)]
    pack_small(write_json(tmp_path / "rows.json", rows), tmp_path / "out")
    found = {one.name: one for one in facts.findings(open_dataset(tmp_path / "out").manifest)}
    unread = found["unread_fields"]
    assert (unread.n, unread.words, unread.more) == (
        20, "fields of rows were not read", "$.mood"
    )  # fmt: skip


def test_every_source_of_a_merged_dataset_is_shown(tmp_path: Path) -> None:
    """Each build counts its own sources from 0: they are still different files."""
    for name, n in (("a", 900), ("b", 12)):
        pack_small(write_json(tmp_path / f"{name}.json", alpaca_rows(n)), tmp_path / name)
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    dataset = open_dataset(tmp_path / "both")
    _, chooser = look(dataset, ReportOptions(samples=24))
    builds = [dataset.builds[number].first_source for number, _ in chooser.chosen()]
    assert builds.count(1) >= 3
