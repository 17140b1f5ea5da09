"""Append and merge: new shards beside old ones, datasets as one; nothing is lost or mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from records import alpaca_rows, digests, pack_small, stop_after, write_json, write_llava

from shardkit import ShardLoader, load_manifest, verify
from shardkit.builder import append, merge_datasets
from shardkit.builder.repair import repair
from shardkit.dataset import open_dataset
from shardkit.errors import (
    BadInput,
    BadManifest,
    BuildConflict,
    CorruptShard,
    StateMismatch,
    UsageError,
)
from shardkit.format.builds import builds_of
from shardkit.report import Topology, find_row, trace_batch

KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "packed": {"packing": "best-fit", "shuffle_seed": 3},
    "zstd": {"packing": "concat", "compression": "zstd:1"},
    "llava": {"image_tokens": 4, "max_length": 128},
}
SMALL = {"part_rows": 40, "shard_size": 20_000}


def make(kind: str, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Three sources, all called rows.json or llava.json, and the options of this kind."""
    options: dict[str, Any] = {**SMALL, **KINDS[kind]}
    sources = []
    for i, n in enumerate((90, 60, 45)):
        place = folder / f"in{i}"
        place.mkdir(parents=True)
        if kind == "llava":
            sources.append(write_llava(place, n, seed=i))
        else:
            rows = alpaca_rows(n, seed=i, n_bad=i + 1)
            sources.append(write_json(place / "rows.json", rows))
    return sources, options


def image_root(source: Path, kind: str) -> dict[str, Any]:
    return {"image_root": source.parent / "images"} if kind == "llava" else {}


@pytest.mark.parametrize("kind", KINDS)
def test_appending_equals_merging(tmp_path: Path, kind: str) -> None:
    """Files appended one after another, datasets merged at once, and merges merged: the same
    bytes; verify finds nothing; the old shards are the same files; repair brings shards back."""
    sources, options = make(kind, tmp_path)
    for i, source in enumerate(sources):
        pack_small(source, tmp_path / f"one{i}", **options, **image_root(source, kind))
    pack_small(sources[0], tmp_path / "grown", **options, **image_root(sources[0], kind))
    old = {p: p.stat().st_ino for p in (tmp_path / "grown").glob("shard*")}
    for source in sources[1:]:
        append(tmp_path / "grown", [source], engine="hf", **image_root(source, kind))
    ones = [tmp_path / f"one{i}" for i in range(3)]
    merge_datasets(ones, tmp_path / "merged")
    merge_datasets(ones[:2], tmp_path / "two", copy=True)
    merge_datasets([tmp_path / "two", ones[2]], tmp_path / "nested")

    expected = digests(tmp_path / "merged")
    assert digests(tmp_path / "grown") == expected
    assert digests(tmp_path / "nested") == expected
    assert {path: path.stat().st_ino for path in old} == old
    assert os.stat(tmp_path / "merged/manifest.json").st_nlink == 1
    assert next((tmp_path / "merged").glob("shard-00000*")).stat().st_nlink == 2
    assert verify(tmp_path / "merged", sources=sources).findings == []
    manifest = load_manifest(tmp_path / "merged")
    assert len(manifest.builds) == 3
    assert manifest.source_names == [sources[0].name, *(f"{sources[0].name} ({k})" for k in (2, 3))]
    assert manifest.n_samples == sum(load_manifest(one).n_samples for one in ones)
    _repair_all_builds(tmp_path / "grown", sources, kind, expected)


def _repair_all_builds(out: Path, sources: list[Path], kind: str, expected: dict[str, str]) -> None:
    """One shard of each build is lost; each comes back with the source of its build alone."""
    manifest = load_manifest(out)
    for build, source in zip(builds_of(manifest), sources, strict=True):
        name = manifest.shards[build.shards[-1]].name
        (out / name).unlink()
        assert repair(out, [name], [source], **image_root(source, kind)) == [name]
    assert digests(out) == expected


def test_rows_are_traced_to_their_own_file(tmp_path: Path) -> None:
    """Batches and rows of a joined dataset name the right source, though shards count their own."""
    sources, options = make("text", tmp_path)
    pack_small(sources[0], tmp_path / "out", **options)
    append(tmp_path / "out", sources[1:], engine="hf")
    root, manifest = tmp_path / "out", load_manifest(tmp_path / "out")
    dataset = open_dataset(root)
    topology = Topology(world_size=1, batch_size=8, shuffle="none", drop_last=False)
    seen: dict[str, list[int]] = {name: [] for name in manifest.source_names}
    for step in range(-(-manifest.n_samples // 8)):
        for origin in trace_batch(dataset, topology, step=step, rank=0):
            seen[origin.source].append(origin.row)
    rejected = [json.loads(s) for s in (root / "rejects-2.jsonl").read_text().splitlines()]
    for source in manifest.sources:
        rows = seen[source.name] + [r["row"] for r in rejected if r["source"] == source.name]
        assert sorted(rows) == list(range(source.n_rows))
    found = find_row(dataset, topology, source=manifest.source_names[2], row=7)
    assert (found[0].step, found[0].slot) == divmod(89 + 58 + 7, 8)


def test_a_loader_reads_all_builds(tmp_path: Path) -> None:
    """Every sample once an epoch; the state of the dataset before is refused."""
    sources, options = make("text", tmp_path)
    pack_small(sources[0], tmp_path / "out", **options)
    state = ShardLoader(tmp_path / "out", batch_size=8).state_dict()
    manifest = append(tmp_path / "out", sources[1], engine="hf")
    loader = ShardLoader(tmp_path / "out", batch_size=8, drop_last=False, sample_keys=True)
    keys = [key for batch in loader for key in batch["keys"] if key]
    assert len(set(keys)) == manifest.n_samples
    with pytest.raises(StateMismatch):
        loader.load_state_dict(state)


def test_other_recipes_are_refused_by_what_differs(tmp_path: Path) -> None:
    """max_length, template, packing, compression: named with both values and both datasets."""
    sources, _ = make("text", tmp_path)
    pack_small(sources[0], tmp_path / "a")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"max_length": 32}, r"max_length: 64 in .*a, 32 in .*b0"),
        ({"template": "vicuna"}, r"template\.name: qwen_chat in .*, vicuna in"),
        ({"packing": "concat"}, r"packing: none in .*, concat in"),
        ({"compression": "zstd"}, r"compression: none in .*, zstd in"),
    ]
    for i, (change, words) in enumerate(changes):
        pack_small(sources[1], tmp_path / f"b{i}", **change)
        with pytest.raises(BuildConflict, match=words):
            merge_datasets([tmp_path / "a", tmp_path / f"b{i}"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = digests(tmp_path / "a")
    with pytest.raises(BuildConflict, match=r"template\.name: qwen_chat before, vicuna now"):
        append(tmp_path / "a", sources[1], template="vicuna")
    assert digests(tmp_path / "a") == before


def test_a_file_that_is_there_already_is_refused(tmp_path: Path) -> None:
    """The same bytes under another name would be trained on twice: refused by both."""
    sources, _ = make("text", tmp_path)
    pack_small(sources[0], tmp_path / "a")
    copy = tmp_path / "renamed.json"
    copy.write_bytes(sources[0].read_bytes())
    before = digests(tmp_path / "a")
    with pytest.raises(BadInput, match=r"renamed\.json.*in the dataset already"):
        append(tmp_path / "a", [copy, sources[1]])
    pack_small(copy, tmp_path / "b")
    with pytest.raises(BadInput, match="twice"):
        merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert digests(tmp_path / "a") == before


def test_a_second_append_of_the_same_files_changes_nothing(tmp_path: Path) -> None:
    """The command that was run before can be run again."""
    sources, options = make("text", tmp_path)
    pack_small(sources[0], tmp_path / "out", **options)
    append(tmp_path / "out", sources[1], engine="hf")
    before = digests(tmp_path / "out")
    append(tmp_path / "out", sources[1], engine="hf")
    assert digests(tmp_path / "out") == before


def test_other_files_after_an_unfinished_append(tmp_path: Path) -> None:
    """What was begun is not mixed with other files: refused, and thrown away with `discard`."""
    sources, options = make("text", tmp_path)
    pack_small(sources[0], tmp_path / "out", **options)
    before = digests(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        append(tmp_path / "out", sources[1], engine="hf", on_progress=stop_after(1))
    assert {k: v for k, v in digests(tmp_path / "out").items() if "building" not in k} == before
    with pytest.raises(BuildConflict, match="--discard"):
        append(tmp_path / "out", sources[2], engine="hf")
    assert len(append(tmp_path / "out", sources[2], engine="hf", discard=True).builds) == 2
    assert verify(tmp_path / "out").findings == []


def test_merge_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    """One dataset, no dataset, a folder that has another one, a damaged shard: nothing is written;
    the same merge again is the result."""
    sources, options = make("text", tmp_path)
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    pack_small(sources[0], a, **options)
    pack_small(sources[1], b, **options)
    with pytest.raises(UsageError):
        merge_datasets([a], out)
    with pytest.raises(BadManifest):
        merge_datasets([a, tmp_path / "in0"], out)
    with pytest.raises(BuildConflict, match="another dataset already"):
        merge_datasets([a, b], a)
    shard = b / "shard-00000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2000])
    with pytest.raises(CorruptShard, match=r"b/shard-00000\.tar"):
        merge_datasets([a, b], out)
    assert not (out / "manifest.json").exists()
    shard.write_bytes(whole)
    merge_datasets([a, b], out)
    before = digests(out)
    merge_datasets([a, b], out)
    assert digests(out) == before
    assert verify(out).findings == []


@pytest.mark.slow
def test_a_killed_append_leaves_the_old_dataset_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL at several moments: the manifest is the old one or the new one, verify finds no
    error in between, and the append that ends gives the bytes of one that was not killed."""
    sources, options = make("text", tmp_path)
    write_json(sources[1], alpaca_rows(1500, seed=9, n_bad=3))
    for name in ("out", "whole"):
        pack_small(sources[0], tmp_path / name, **options)
    append(tmp_path / "whole", sources[1], engine="hf")
    out = tmp_path / "out"
    before = (out / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "shardkit", "append", str(out), str(sources[1])]
    command += ["--tokenizer-engine", "hf", "--workers", "2"]
    for delay in (0.0, 0.4):
        process = subprocess.Popen(
            command,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (out / ".building/append/plan.json").exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (out / "manifest.json").read_bytes() == before:
            assert verify(out).problems == []
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize("n_moved", [0, 3, None])
def test_an_append_that_dies_while_it_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_moved: int | None
) -> None:
    """Dead before, between and after the shards get their names: the old dataset is whole, and
    the next run gives the same bytes."""
    from shardkit.builder import commit

    sources, options = make("text", tmp_path)
    for name in ("out", "whole"):
        pack_small(sources[0], tmp_path / name, **options)
    append(tmp_path / "whole", sources[1], engine="hf")
    out, real = tmp_path / "out", commit._move
    moved: list[None] = []

    def die(*args: Any) -> None:
        if len(moved) == n_moved:
            raise KeyboardInterrupt
        real(*args)
        moved.append(None)

    if n_moved is None:
        monkeypatch.setattr(commit, "join_rejects", lambda *_: die_now())
    monkeypatch.setattr(commit, "_move", die)
    with pytest.raises(KeyboardInterrupt):
        append(out, sources[1], engine="hf")
    monkeypatch.undo()
    assert len(load_manifest(out).builds) == 0
    assert verify(out).problems == []
    append(out, sources[1], engine="hf")
    assert digests(out) == digests(tmp_path / "whole")


def die_now() -> None:
    raise KeyboardInterrupt
