"""What changes under a pack is noticed: its inputs, and what it left in .building."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import alpaca_rows, digests, pack_small, stop_after, write_json

from shardkit import load_manifest, verify
from shardkit.builder import append, merge
from shardkit.builder.build import Progress
from shardkit.builder.folder import locked, prepared, tidy
from shardkit.builder.repair import repair
from shardkit.errors import BadInput, BuildConflict, BuildFailed, UsageError

OTHER = {"instruction": "another", "input": "", "output": "file"}


def in_place(path: Path) -> None:
    """Other bytes of the same length, and the old time of modification."""
    status = path.stat()
    data = path.read_bytes().replace(b"Task", b"task")
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    """Another file under the same name."""
    new = write_json(path.with_name("new"), [OTHER] * 120)
    os.replace(new, path)


def cut(path: Path) -> None:
    """The second half is gone."""
    os.truncate(path, path.stat().st_size // 2)


def removed(path: Path) -> None:
    """The file is gone."""
    path.unlink()


CHANGES = [in_place, replaced, cut, removed]


def after_part(change: Callable[[Path], None], source: Path, n: int) -> Callable[[Progress], None]:
    """Makes the change when n rows are built."""
    is_done = False

    def on_progress(progress: Progress) -> None:
        nonlocal is_done
        if progress.stage == "build" and progress.n_done >= n and not is_done:
            is_done = True
            change(source)

    return on_progress


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n", [50, 120])
def test_a_source_that_changes_is_noticed(
    tmp_path: Path, change: Callable[[Path], None], n: int
) -> None:
    """After the first part, or after the last: BadInput, and no manifest that lies."""
    source, out = write_json(tmp_path / "a.json", alpaca_rows(120)), tmp_path / "out"
    with pytest.raises(BadInput, match=r"a\.json: the input (changed|is gone)"):
        pack_small(source, out, on_progress=after_part(change, source, n))
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("change", [in_place, cut])
def test_a_source_that_changes_under_an_append(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The dataset stays as it was."""
    first = write_json(tmp_path / "a.json", alpaca_rows(60))
    second, out = write_json(tmp_path / "b.json", alpaca_rows(120, seed=1)), tmp_path / "out"
    pack_small(first, out)
    before = digests(out)
    with pytest.raises(BadInput, match=r"b\.json: the input changed"):
        append(out, second, on_progress=after_part(change, second, 50))
    assert {k: v for k, v in digests(out).items() if ".building" not in k} == before


def interrupted(source: Path, out: Path) -> Path:
    """A pack that ended after two of its three parts; its working folder."""

    with pytest.raises(KeyboardInterrupt):
        pack_small(source, out, on_progress=stop_after(100))
    return out / ".building"


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


FILES = [
    "plan.json",
    "tokenizer/tokenizer.json",
    "part-000000.json",
    "part-000000/shard-00000.tar",
    "part-000000/hashes.npy",
    "part-000000/rejects.jsonl",
]


@pytest.mark.parametrize("damage", [flip, removed])
@pytest.mark.parametrize("name", FILES)
def test_damage_in_building_is_built_again(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Whatever is damaged between two runs: the result is that of an undisturbed one."""
    source = write_json(tmp_path / "a.json", alpaca_rows(120, n_bad=3))
    pack_small(source, tmp_path / "whole")
    building = interrupted(source, tmp_path / "out")
    found = building / name
    if not found.exists():
        found = next(iter(sorted(found.parent.glob(f"*{found.suffix}"))))
    damage(found)
    pack_small(source, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_merge_takes_no_damaged_tokenizer(tmp_path: Path) -> None:
    """It has no tokenizer to compare with: the plan says what its files were."""
    source, out = write_json(tmp_path / "a.json", alpaca_rows(60)), tmp_path / "out"
    with pytest.raises(AssertionError):
        pack_small(source, out, part=(1, 1))
    flip(out / ".building/tokenizer/tokenizer.json")
    with pytest.raises(BuildFailed, match="tokenizer that lies with the plan"):
        merge(out)
    assert pack_small(source, out).n_samples == 60
    assert not verify(out).problems


REFUSALS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"packing": "best-fit", "max_length": None}, UsageError),
    ({"image_token": "<no such token>"}, UsageError),
    ({"on_error": "fail"}, BadInput),
]


@pytest.mark.parametrize("is_planned", [False, True])
def test_an_interruption_keeps_what_there_is(tmp_path: Path, is_planned: bool) -> None:
    """Nothing before the plan; the plan and what follows it stay."""
    out = tmp_path / "a/out"

    def interrupted() -> None:
        with prepared(out) as folder, locked(folder) as lock, tidy(folder, lock):
            (folder / "planning").touch()
            if is_planned:
                (folder / "plan.json").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (out / ".building/plan.json").exists() == is_planned
    assert (tmp_path / "a").exists() == is_planned


@pytest.mark.parametrize(("options", "error"), REFUSALS)
@pytest.mark.parametrize("part", [None, (1, 2)])
def test_a_refusal_leaves_nothing_behind(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], part: tuple[int, int] | None
) -> None:
    """No folder that would hinder the corrected call."""
    rows: list[Any] = [5, *alpaca_rows(20)]
    source, out = write_json(tmp_path / "a.json", rows), tmp_path / "new/out"
    with pytest.raises(error):
        pack_small(source, out, part=part, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


def test_overwrite_touches_nothing_before_it_knows_what_comes(tmp_path: Path) -> None:
    """A bad input leaves the dataset that was to be replaced; then it is replaced."""
    source, out = write_json(tmp_path / "a.json", alpaca_rows(20)), tmp_path / "out"
    pack_small(source, out)
    before = digests(out)
    broken = tmp_path / "b.json"
    broken.write_text('[{"instruction": "a"')
    with pytest.raises(BadInput):
        pack_small(broken, out, overwrite=True)
    assert digests(out) == before
    with pytest.raises(UsageError, match="--overwrite with --part"):
        pack_small(source, out, overwrite=True, part=(1, 2))
    assert pack_small(source, out, overwrite=True, max_length=32).recipe["max_length"] == 32


def test_half_of_the_rows_may_be_rejected(tmp_path: Path) -> None:
    """More is refused by default, naming the first; a rerun with a higher limit commits at once,
    and so does a merge."""
    rows: list[Any] = [{"instruction": "x"}] * 11 + alpaca_rows(9)
    source, out = write_json(tmp_path / "a.json", rows), tmp_path / "out"
    with pytest.raises(BadInput, match=r"(?s)at most 50.00%.*11 of 20.*first: a\.json row 0: "):
        pack_small(source, out, source_format="alpaca")
    built = [path.stat().st_mtime_ns for path in sorted(out.glob(".building/part-*.json"))]

    def check(progress: Progress) -> None:
        if progress.stage == "commit":
            parts = sorted(out.glob(".building/part-*.json"))
            assert [path.stat().st_mtime_ns for path in parts] == built

    assert (
        pack_small(
            source, out, source_format="alpaca", max_rejects=0.6, on_progress=check
        ).n_samples
        == 9
    )
    with pytest.raises(AssertionError):
        pack_small(source, tmp_path / "parts", source_format="alpaca", part=(1, 1))
    with pytest.raises(BadInput, match="more rows were rejected"):
        merge(tmp_path / "parts")
    assert merge(tmp_path / "parts", max_rejects=12).n_samples == 9


def test_one_file_by_two_spellings_is_refused(tmp_path: Path) -> None:
    """Relative and absolute, and a link: it would be in the dataset twice."""
    source = write_json(tmp_path / "a.json", alpaca_rows(20))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.json").symlink_to("a.json")
    for other in (tmp_path / "sub/../a.json", tmp_path / "link.json"):
        with pytest.raises(BadInput, match="named twice"):
            pack_small([source, other], tmp_path / "out")


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    """The file of a hub cache is called as its link, not as the blob that it leads to."""
    blob = write_json(tmp_path / "0123abcd", alpaca_rows(20))
    link = tmp_path / "snapshots/train.json"
    link.parent.mkdir()
    link.symlink_to(blob)
    assert pack_small(link, tmp_path / "out").source_names == ["train.json"]


def test_a_template_file_is_not_needed_again(tmp_path: Path) -> None:
    """Also when it is called like a built-in one: verify --source, append and repair take what
    the manifest holds."""
    fields = '{"INSTRUCTION": "Q: {input}\\nA:", "SUFFIX": "<|im_end|>", "SUFFIX_AS_EOS": true}'
    template = tmp_path / "qwen_chat.json"
    template.write_text(fields)
    source, out = write_json(tmp_path / "a.json", alpaca_rows(60)), tmp_path / "out"
    more = write_json(tmp_path / "b.json", alpaca_rows(20, seed=1))
    pack_small(source, out, template=str(template), shard_size=8000)
    template.unlink()
    assert not verify(out, sources=[source]).problems
    shard = load_manifest(out).shards[0].name
    (out / shard).unlink()
    assert repair(out, [shard], [source]) == [shard]
    assert len(append(out, more).builds) == 2
    assert not verify(out, sources=[source, more]).problems


def test_a_folder_called_manifest_json_is_refused(tmp_path: Path) -> None:
    """It could not be read; and a path that only ends like that is not cut."""
    source = write_json(tmp_path / "a.json", alpaca_rows(20))
    with pytest.raises(UsageError, match="cannot be called"):
        pack_small(source, tmp_path / "manifest.json")
    pack_small(source, tmp_path / "my-manifest.json")
    assert load_manifest(tmp_path / "my-manifest.json").n_samples == 20
    assert load_manifest(tmp_path / "my-manifest.json/manifest.json").n_samples == 20


def test_parts_begun_otherwise_are_a_conflict(tmp_path: Path) -> None:
    """What is built is never thrown away unasked."""
    source, out = write_json(tmp_path / "a.json", alpaca_rows(120)), tmp_path / "out"
    interrupted(source, out)
    with pytest.raises(BuildConflict, match="max_length: 64 before, 32 now"):
        pack_small(source, out, max_length=32)
    assert pack_small(source, out).n_samples == 120
