"""Which files arguments mean, what they are called, and which rows say the same."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from records import alpaca_rows, pack_small, write_json

from shardkit import verify
from shardkit.errors import BadInput
from shardkit.sources import expand_inputs, find_again, find_inputs, names_of
from shardkit.sources.csv_rows import as_lines


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The layout of a dataset on the Hugging Face hub."""
    for name in ("README.md", "data/train-0.jsonl", "data/train-1.jsonl", "data/test-0.jsonl"):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_text('{"text": "a"}\n')
    return tmp_path / "hub"


@pytest.mark.parametrize("inner", ["", "data", "data/*.jsonl"])
def test_test_files_beside_others_are_left_out_and_named(hub: Path, inner: str) -> None:
    """In a folder, one level down, in a glob; --split takes them, alone or too."""
    pattern = str(hub / inner)
    found = find_inputs([pattern])
    assert [path.name for path in found.paths] == ["train-0.jsonl", "train-1.jsonl"]
    assert [Path(one.name).name for one in found.left_out] == ["test-0.jsonl"]
    assert "--split all" in found.notes[0]
    assert [path.name for path in expand_inputs([pattern], "test")] == ["test-0.jsonl"]
    assert len(expand_inputs([pattern], "all")) == 3


@pytest.mark.parametrize("above", ["", "data"])
@pytest.mark.parametrize("form", ["", "*/*.jsonl"])
def test_test_folders_are_left_out_and_named(tmp_path: Path, above: str, form: str) -> None:
    """train/a.jsonl beside test/a.jsonl, one or two levels down or by a glob over both; a folder
    that is named is meant, whatever it is called."""
    root = tmp_path / "in" / above
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        (root / split / "a.jsonl").write_text('{"text": "a"}\n')
    pattern = str(root / form) if form else str(tmp_path / "in")
    found = find_inputs([pattern])
    assert found.paths == [root / "train/a.jsonl"]
    assert [one.name.endswith("test/a.jsonl") for one in found.left_out] == [True]
    assert expand_inputs([pattern], "test") == [root / "test/a.jsonl"]
    assert len(expand_inputs([pattern], "all")) == 2
    assert expand_inputs([root / "test"]) == [root / "test/a.jsonl"]
    assert expand_inputs([str(root / "test/*.jsonl")]) == [root / "test/a.jsonl"]


def test_rows_beside_nothing_but_an_object_are_further_down(tmp_path: Path) -> None:
    """dataset_infos.json above data/, as on the hub; what lies too deep is named."""
    (tmp_path / "in/data").mkdir(parents=True)
    (tmp_path / "in/dataset_infos.json").write_text('{\n "default": {}\n}')
    (tmp_path / "in/data/train.jsonl").write_text('{"text": "a"}\n')
    found = find_inputs([tmp_path / "in"])
    assert found.paths == [tmp_path / "in/data/train.jsonl"]
    assert [one.name for one in found.left_out] == ["dataset_infos.json"]
    deep = tmp_path / "deep/a/b/c"
    deep.mkdir(parents=True)
    (deep / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(BadInput, match=r"further down, as .*deep/a/b/c/rows.jsonl"):
        expand_inputs([tmp_path / "deep"])


def test_a_folder_is_the_source_of_what_was_packed_from_it(hub: Path, tmp_path: Path) -> None:
    """verify --source FOLDER takes the files of the manifest's names, of any split."""
    rows = {"train-0": 5, "train-1": 6, "test-0": 7}
    for name, n in rows.items():
        write_json(hub / f"data/{name}.jsonl", alpaca_rows(n, seed=n))
    for split, n in (("train", 11), ("test", 7), ("all", 18)):
        out = tmp_path / split
        manifest = pack_small(hub, out, split=split)
        assert manifest.n_samples == n
        names = [source.name for source in manifest.sources]
        assert [one.name for one in find_again([hub], names)] == [Path(n).name for n in names]
        assert verify(out, sources=[hub]).findings == []


def test_a_packed_dataset_is_no_input(tmp_path: Path) -> None:
    """Neither its folder nor a shard of it."""
    pack_small(write_json(tmp_path / "rows.json", alpaca_rows(3)), tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out/shard-00000.tar", tmp_path / "out/*.tar"):
        with pytest.raises(BadInput, match="packed dataset"):
            expand_inputs([path])


def test_a_test_file_that_is_named_or_alone_is_meant(hub: Path) -> None:
    """What is named is packed; and a folder with nothing else."""
    (path,) = expand_inputs([hub / "data/test-0.jsonl"])
    assert path.name == "test-0.jsonl"
    for name in ("train-0.jsonl", "train-1.jsonl"):
        (hub / "data" / name).unlink()
    assert expand_inputs([hub]) == [hub / "data/test-0.jsonl"]


@pytest.mark.parametrize("inner", ["", "data", "data/*.jsonl"])
def test_test_files_that_are_not_there_are_no_training_files(hub: Path, inner: str) -> None:
    """--split test without any: refused, with the place and what is there."""
    (hub / "data/test-0.jsonl").unlink()
    with pytest.raises(BadInput, match="no test or validation file") as caught:
        expand_inputs([hub / inner], "test")
    assert str(hub / inner) in str(caught.value)
    assert "train-0.jsonl" in str(caught.value)
    named = hub / "data/train-0.jsonl"
    assert expand_inputs([named], "test") == [named]


def test_an_empty_folder_says_that_it_is_there(tmp_path: Path) -> None:
    """Not that there is no such input."""
    with pytest.raises(BadInput, match="no file to read in this folder"):
        expand_inputs([tmp_path])


def test_one_file_by_two_spellings_is_named_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative and absolute, also among a thousand others."""
    monkeypatch.chdir(tmp_path)
    for i in range(1001):
        Path(f"{i}.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="named twice"):
        expand_inputs([tmp_path, "7.jsonl"])


def test_a_link_is_called_by_its_own_name(tmp_path: Path) -> None:
    """As in a cache, where files are links to digests."""
    (tmp_path / "0123abcd").write_text("{}\n")
    os.symlink(tmp_path / "0123abcd", tmp_path / "train.jsonl")
    assert names_of([tmp_path / "train.jsonl"]) == ["train.jsonl"]


def test_repeated_rows_are_dropped_once(tmp_path: Path) -> None:
    """The first one stays, whatever the parts and the order of its keys; the others are listed
    with the row that is kept. Without the option all stay."""
    rows: list[Any] = alpaca_rows(30)
    again = [dict(reversed(rows[3].items())), rows[7], {**rows[3], "input": "other"}]
    first = write_json(tmp_path / "a.json", rows)
    second = write_json(tmp_path / "b.json", [*again, rows[3]])
    trees = []
    for part_rows in (None, 4):
        out = tmp_path / f"out{part_rows}"
        manifest = pack_small([first, second], out, drop_duplicates=True, part_rows=part_rows)
        assert [source.rejected for source in manifest.sources] == [{}, {"duplicate": 3}]
        lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
        assert [line["row"] for line in lines] == [0, 1, 3]
        assert [line["detail"].split(" of ")[0] for line in lines] == [
            "the same as row 3",
            "the same as row 7",
            "the same as row 3",
        ]
        assert verify(out, sources=[first, second]).findings == []
        trees.append(manifest.n_tokens)
    assert trees[0] == trees[1]
    kept = pack_small([first, second], tmp_path / "all")
    assert kept.n_samples == 34
    assert kept.fingerprint != manifest.fingerprint


def test_an_object_beside_rows_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """meta.json of a folder, over lines or in one; not a one-row file, nor a file that is named."""
    (tmp_path / "in").mkdir()
    write_json(tmp_path / "in/rows.json", alpaca_rows(5))
    (tmp_path / "in/one.json").write_text('{"instruction": "a", "output": "b"}')
    (tmp_path / "in/meta.json").write_text('{\n "name": "x"\n}\n')
    (tmp_path / "in/info.json").write_text('{"splits": []}')
    manifest = pack_small(tmp_path / "in", tmp_path / "out")
    assert [source.name for source in manifest.sources] == ["one.json", "rows.json"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Left out, one JSON object and no rows")
    assert line.endswith("info.json, meta.json")
    with pytest.raises(BadInput, match="one JSON object, not a list of rows"):
        pack_small(tmp_path / "in/meta.json", tmp_path / "named")
    with pytest.raises(BadInput, match="no file here holds rows"):
        pack_small(str(tmp_path / "in/*f*.json"), tmp_path / "none")


def test_files_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """--exclude takes patterns of names; what it leaves out is told."""
    for name in ("a.json", "b.json", "notes.json"):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_json(tmp_path / "in" / name, alpaca_rows(3, seed=len(name)))
    manifest = pack_small(tmp_path / "in", tmp_path / "out", exclude=["b.*", "note*"])
    assert [source.name for source in manifest.sources] == ["a.json"]
    assert "Left out, as --exclude says: b.json, notes.json" in caplog.text


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_tables_as_text(tmp_path: Path, name: str) -> None:
    """CSV and TSV give what JSON gives; a row of other cells is rejected, and verify agrees."""
    rows = [{"instruction": "a, b", "output": 'say "x"\nthen'}, {"instruction": "ü", "output": "y"}]
    with open(tmp_path / name, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(
            file, ["instruction", "output"], delimiter="\t" if name.endswith("tsv") else ","
        )
        writer.writeheader()
        writer.writerows(rows)
        file.write("lonely\r\n")
    made = pack_small(tmp_path / name, tmp_path / "out", max_rejects=1)
    alike = pack_small(write_json(tmp_path / "rows.json", rows), tmp_path / "alike")
    assert made.sources[0].rejected == {"bad_record": 1}
    assert made.n_tokens == alike.n_tokens
    assert verify(tmp_path / "out", sources=[tmp_path / name]).findings == []
    for broken in (b"a,a\n1,2\n", b"", b"a,b\n\xff,2\n", b'a,b\n"1,2\n'):
        (tmp_path / "broken.csv").write_bytes(broken)
        with pytest.raises(BadInput):
            pack_small(tmp_path / "broken.csv", tmp_path / "no")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text\na\n\nb\n", ["a", "", "b"]),
        ("text\n\n\na", ["", "", "a"]),
        ("text\na\n\n", ["a"]),
        ("text\na\n\n\n", ["a", ""]),
        ('text\na\n""\n', ["a", ""]),
        ("text,more\na,b\n\nc,d\n", ["a", "c"]),
    ],
)
def test_an_empty_cell_of_one_column_is_a_row(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    """Unquoted it is a blank line, of which only the last of a file is none."""
    path = tmp_path / "rows.csv"
    path.write_text(text)
    lines, _ = as_lines(path, path, None, tmp_path / "lines")
    assert [json.loads(line)["text"] for line in lines.read_text().splitlines()] == expected
