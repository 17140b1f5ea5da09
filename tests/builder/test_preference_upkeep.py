"""Pairs are kept like other rows: killed packs, parts, merges, additions, damage, traces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from packing_cases import command
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json
from vlm_rows import picture_of

from shardkit import ShardTable, pack
from shardkit.builder import append, merge, merge_datasets
from shardkit.builder.repair import repair
from shardkit.check import verify
from shardkit.dataset import open_dataset
from shardkit.errors import BuildConflict
from shardkit.report import Topology, find_row, trace_batch
from shardkit.report.view import view_sample

OPTIONS: dict[str, Any] = {"task": "preference", "max_length": 64, "part_rows": 20}


def write_pairs(path: Path, n: int, *, first: int = 0, folder: Path | None = None) -> Path:
    """n pairs of their own; every third has a picture below `folder`."""
    lines = []
    for i in range(first, first + n):
        row: dict[str, Any] = {"id": f"r{i}", "prompt": [{"role": "user", "content": f"q {i}"}]}
        row |= {"chosen": "yes " * (i % 5 + 1), "rejected": f"no {i}"}
        if folder is not None and i % 3 == 0:
            folder.mkdir(exist_ok=True)
            picture_of(i, 0).save(folder / f"{i}.png")
            row["images"] = [f"{i}.png"]
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def answers(dataset: Path, number: int, row: int) -> list[str]:
    """What is in the loss of both segments of a row."""
    view = view_sample(open_dataset(dataset), number, row)
    return ["".join(text for text, is_in in one.pieces if is_in) for one in view.segments]


def test_a_killed_pack_of_pairs_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL when two parts are done; the same call in another process finishes it."""
    source, out = write_pairs(tmp_path / "a.jsonl", 2000), tmp_path / "killed"
    whole = pack_small(source, tmp_path / "whole", **OPTIONS)
    process = subprocess.Popen(
        command(source, out, OPTIONS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(out.glob(".building/part-*.json"))) < 2:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert pack_small(source, out, **OPTIONS) == whole
    assert digests(out) == digests(tmp_path / "whole")


def test_parts_and_datasets_of_pairs_are_merged(tmp_path: Path) -> None:
    """Shares of one pack become its bytes; two datasets one, whose rows are all there."""
    first = write_pairs(tmp_path / "a.jsonl", 50)
    second = write_pairs(tmp_path / "b.jsonl", 30, first=50)
    whole = pack_small(first, tmp_path / "one", **OPTIONS)
    for number in (2, 1):
        share: dict[str, Any] = {"template": "qwen_chat", "engine": "hf", "part": (number, 2)}
        pack(first, tmp_path / "shares", tokenizer=TOKENIZER, **OPTIONS, **share)
    assert merge(tmp_path / "shares") == whole
    assert digests(tmp_path / "shares") == digests(tmp_path / "one")

    pack_small(second, tmp_path / "two", **OPTIONS)
    both = merge_datasets([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert (both.n_samples, both.recipe["task"]) == (80, "preference")
    tables = [ShardTable(tmp_path / name) for name in ("both", "one", "two")]
    expected = [*tables[1], *tables[2]]
    for found, one in zip(tables[0], expected, strict=True):
        for name in ("chosen_input_ids", "rejected_input_ids", "rejected_labels"):
            assert found[name].tolist() == one[name].tolist()
    assert not verify(tmp_path / "both", sources=[first, second]).findings

    plain = write_json(tmp_path / "c.json", alpaca_rows(3))
    pack_small(plain, tmp_path / "plain")
    with pytest.raises(BuildConflict, match="task"):
        merge_datasets([tmp_path / "one", tmp_path / "plain"], tmp_path / "mixed")


def test_a_row_and_its_answers_are_found(tmp_path: Path) -> None:
    """From a row to its step and from the step to the row; both answers are shown with it."""
    source, out = write_pairs(tmp_path / "a.jsonl", 50), tmp_path / "out"
    pack_small(source, out, **OPTIONS)
    data = open_dataset(out)
    topology = Topology(world_size=2, batch_size=4, seed=3)
    chosen, rejected = find_row(data, topology, source="a.jsonl", row=17)
    assert (chosen.start, rejected.start) == (0, chosen.length)
    assert (chosen.step, chosen.rank, chosen.slot) == (rejected.step, rejected.rank, rejected.slot)
    assert chosen.step is not None
    assert chosen.rank is not None
    batch = trace_batch(data, topology, step=chosen.step, rank=chosen.rank)
    assert [(one.source, one.row) for one in batch].count(("a.jsonl", 17)) == 2
    assert answers(out, 0, 17) == ["yes yes yes <|im_end|>\n", "no 17<|im_end|>\n"]


def test_pictures_of_pairs_survive_append_damage_and_repair(tmp_path: Path) -> None:
    """A repaired shard has its bytes; all rows are read again, and a changed answer is found."""
    images = tmp_path / "images"
    first = write_pairs(tmp_path / "a.jsonl", 24, folder=images)
    second = write_pairs(tmp_path / "b.jsonl", 9, first=24, folder=images)
    out, options = tmp_path / "out", OPTIONS | {"image_root": images, "image_tokens": 4}
    pack_small(first, out, **options)
    appended = append(out, second, image_root=images)
    assert (appended.n_samples, appended.n_images) == (33, 11)
    for i in (0, 1):
        shard = out / f"shard-{i:05d}.tar"
        before = shard.read_bytes()
        shard.write_bytes(before[:3000] + bytes([before[3000] ^ 1]) + before[3001:])
        repair(out, [shard.name], [first, second], image_root=images)
        assert shard.read_bytes() == before
    proven = verify(out, sources=[first, second])
    assert not proven.findings
    assert proven.n_rows_retokenised == 33

    first.write_text(first.read_text().replace('"no 7"', '"no 8"'))
    (found,) = verify(out, sources=[first, second]).findings
    assert found.message.endswith("a.jsonl is not a source of this dataset")
