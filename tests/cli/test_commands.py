"""Commands: results on stdout, notes on stderr, exit status 0, 1, 2 or 130, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json, write_llava
from torch.utils.data import DataLoader

from shardkit import ShardDataset, ShardLoader, ShardMixture
from shardkit.loader.options import DatasetOptions

Done = subprocess.CompletedProcess[str]
PACK = ["--tokenizer", str(TOKENIZER), "--template", "qwen_chat", "--max-length", "64"]
TRACE_STATE = ["trace", "OUT", "--step", "0", "--world-size", "2", "--batch-size", "4", "--state"]
TRACE_PLAIN = ["trace", "OUT", "--step", "0", "--world-size", "2", "--batch-size", "4"]


def shardkit(*arguments: object, **options: Any) -> Done:
    """Run the command as a user does, piped; whatever happens, there is no traceback."""
    command = [sys.executable, "-m", "shardkit_cli.main", *map(str, arguments)]
    raw = subprocess.run(command, capture_output=True, check=False, timeout=300, **options)
    done = Done(command, raw.returncode, raw.stdout.decode(), raw.stderr.decode())
    assert "Traceback" not in done.stderr + done.stdout
    assert "\x1b" not in done.stdout + done.stderr, "escape codes in a pipe"
    assert "\r" not in done.stdout + done.stderr, "a progress bar in a pipe"
    assert "━" not in done.stdout + done.stderr, "a progress bar in a pipe"
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows.json with three bad rows, packed into `out`."""
    folder = tmp_path_factory.mktemp("made")
    rows = write_json(folder / "rows.json", alpaca_rows(60, n_bad=3))
    pack_small(rows, folder / "out", shard_size=20_000, part_rows=20)
    return folder


def test_pack_then_verify(made: Path, tmp_path: Path) -> None:
    """The ledger is on stdout, what to do next on stderr."""
    out = tmp_path / "out"
    done = shardkit("pack", made / "rows.json", "--out", out, *PACK, "--shard-size", "20K")
    assert done.returncode == 0
    assert "rows.json" in done.stdout
    assert "57" in done.stdout
    assert f"Next: shardkit verify {out}" in done.stderr
    assert "rejects.jsonl" in done.stderr

    done = shardkit("verify", out, "--source", made / "rows.json", "--workers", "2")
    assert done.returncode == 0
    assert "good: no problem found" in done.stdout
    assert done.stderr == ""


def test_json_is_all_of_stdout(made: Path, tmp_path: Path) -> None:
    """--json of every command that has it parses, with nothing around it."""
    out = tmp_path / "out"
    done = shardkit("pack", made / "rows.json", "--out", out, *PACK, "--json")
    assert json.loads(done.stdout)["n_samples"] == 57
    done = shardkit("pack", made / "rows.json", *PACK, "--json", "--dry-run")
    assert json.loads(done.stdout)["samples"]
    done = shardkit("verify", out, "--json")
    assert json.loads(done.stdout)["ok"] is True
    done = shardkit("inspect", out, "--json")
    assert json.loads(done.stdout)["summary"]["n_samples"] == 57
    done = shardkit("inspect", out, "--json", "--sample", "3")
    assert json.loads(done.stdout)["segments"][0]["row"] == 3
    done = shardkit("plan", out, "--json", "--world-size", "4", "--batch-size", "2")
    assert json.loads(done.stdout)["runs"][0]["n_steps"] == 7
    done = shardkit("inspect", out / "shard-00000.tar", "--json")
    assert json.loads(done.stdout)["n_samples"] == 57
    run = ["--world-size", "2", "--batch-size", "4", "--seed", "1", "--json"]
    found = json.loads(shardkit("trace", out, "--step", "3", "--rank", "1", *run).stdout)
    assert len(found) == 4
    row = f"rows.json:{found[2]['row']}"
    (seen,) = json.loads(shardkit("trace", out, "--row", row, *run).stdout)
    assert (seen["step"], seen["rank"], seen["slot"]) == (3, 1, 2)


def test_people_can_read_it(made: Path) -> None:
    """inspect and its sample, plan and trace print tables."""
    out = made / "out"
    assert "qwen_chat" in shardkit("inspect", out).stdout
    sample = shardkit("inspect", out, "--sample", "shard-00001/00000001").stdout
    assert "⟦" in sample
    assert "Task" in sample
    assert "rank" in shardkit("plan", out, "--readers", "--world-size", "2").stdout
    done = shardkit("trace", out, "--step", "0", "--world-size", "2", "--batch-size", "2")
    assert "rows.json" in done.stdout


def test_trace_goes_on_from_a_state(made: Path, tmp_path: Path) -> None:
    """--state gives what the run had; steps count from it; rows outside it are told apart."""
    out, file = made / "out", tmp_path / "state.json"
    state = ShardLoader(out, 4, rank=0, world_size=2, seed=7).state_dict() | {"position": 24}
    file.write_text(json.dumps(state))
    loader = ShardLoader(out, 8, rank=0, world_size=1, seed=7, sample_keys=True, prefetch=0)
    loader.load_state_dict(state)
    run = ["trace", out, "--world-size", "1", "--batch-size", "8", "--state", file]

    done = shardkit(*run, "--step", "0", "--no-drop-last")
    assert "epoch 0 (steps after 24 samples of it)" in done.stdout
    found = json.loads(shardkit(*run, "--step", "0", "--json").stdout)
    assert [f"{one['shard']}/{one['key']}" for one in found] == next(iter(loader))["keys"]
    (last,) = json.loads(shardkit(*run, "--step", "4", "--no-drop-last", "--json").stdout)
    assert "drop_last" in shardkit(*run, "--row", f"rows.json:{last['row']}").stdout
    start = ["--step", "0", "--world-size", "2", "--batch-size", "4", "--seed", "7", "--json"]
    early = json.loads(shardkit("trace", out, *start).stdout)[0]
    told = shardkit(*run, "--row", f"rows.json:{early['row']}", "--json").stdout
    assert json.loads(told)[0]["note"] == "before the state"


RUN = ["--rank", "1", "--world-size", "2", "--batch-size", "3"]


@pytest.mark.parametrize("is_mixture", [False, True])
def test_trace_by_length_and_of_mixtures(made: Path, tmp_path: Path, is_mixture: bool) -> None:
    """From the options of the run, and from a state, which says that it was by length."""
    other, file = tmp_path / "b", tmp_path / "state.json"
    pack_small(made / "rows.json", other)
    place: DatasetOptions = {"rank": 1, "world_size": 2, "seed": 4}
    dataset = ShardDataset(made / "out", **place)
    words: list[object] = ["trace", made / "out"]
    if is_mixture:
        dataset = ShardMixture({made / "out": 3, other: 1}, until="endless", **place)
        words += [other, "--weights", "3", "1", "--until", "endless"]
    loader = ShardLoader(dataset, 3, sample_keys=True, prefetch=0, group_by_length=True)
    steps = [step["keys"] for step, _ in zip(loader, range(4), strict=False)]
    run = [*words, *RUN, "--seed", "4", "--group-by-length"]

    done = shardkit(*run, "--step", "0")
    assert ", by length" in done.stdout
    assert ("1/shard-" in done.stdout) == any(key.startswith("1/") for key in steps[0])
    found = json.loads(shardkit(*run, "--step", "0", "--json").stdout)
    members = [f"{one['member']}/" if is_mixture else "" for one in found]
    keys = [f"{m}{one['shard']}/{one['key']}" for m, one in zip(members, found, strict=True)]
    assert keys == steps[0]
    seen = shardkit(*run, "--row", f"rows.json:{found[1]['row']}", "--json").stdout
    assert (0, 1, 1) in [(one["step"], one["rank"], one["slot"]) for one in json.loads(seen)]

    state = loader.state_dict()
    file.write_text(json.dumps(state))
    found = json.loads(shardkit(*words, *RUN, "--state", file, "--step", "0", "--json").stdout)
    loader.load_state_dict(state)
    assert [one["key"] for one in found] == [key[-8:] for key in next(iter(loader))["keys"]]


def test_trace_through_a_plain_data_loader(made: Path) -> None:
    """The samples that torch's DataLoader puts into its second batch, by their lengths."""
    dataset = ShardDataset(made / "out", rank=1, world_size=2, seed=4)
    batches = iter(DataLoader(dataset, 3, num_workers=2, collate_fn=dataset.collate))
    lengths = [next(batches)["attention_mask"].sum(1).tolist() for _ in range(2)][1]
    done = shardkit(
        "trace", made / "out", *RUN, "--seed", "4", "--data-loader", "2", "--step", "1", "--json"
    )
    assert [one["length"] for one in json.loads(done.stdout)] == lengths


def test_damage_is_found_and_repaired(made: Path, tmp_path: Path) -> None:
    """verify exits with 1 and says what to type; repair mends; verify is content again."""
    out = shutil.copytree(made / "out", tmp_path / "out")
    before = digests(out)
    (out / "shard-00000.tar").unlink()
    data = bytearray((out / "shard-00001.tar").read_bytes())
    data[3000] ^= 1
    (out / "shard-00001.tar").write_bytes(data)

    done = shardkit("verify", out)
    assert done.returncode == 1
    assert "bad: " in done.stdout
    assert "shard-00000.tar" in done.stdout
    assert f"Next: shardkit repair {out} --source" in done.stderr
    assert json.loads(shardkit("verify", out, "--json").stdout)["ok"] is False

    done = shardkit("repair", out, "--source", made / "rows.json")
    assert (done.returncode, digests(out)) == (0, before)
    assert "2 shards are whole again" in done.stdout
    (out / ".building" / "repair").mkdir(parents=True)  # a kill after the last shard leaves it
    done = shardkit("repair", out, "--source", made / "rows.json")
    assert (done.returncode, done.stdout) == (0, f"{out}: no shard is damaged\n")
    assert digests(out) == before
    assert not (out / ".building").exists()


def test_slurm_shares_are_merged(made: Path, tmp_path: Path) -> None:
    """Parts built apart and merged are the dataset that one run makes; too early is refused."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*PACK, "--part-rows", "20", "--shard-size", "20000"]
    assert shardkit("pack", made / "rows.json", "--out", one, *options).returncode == 0
    done = shardkit("pack", made / "rows.json", "--out", two, *options, "--part", "1/2")
    assert done.returncode == 0
    assert "shardkit merge" in done.stderr
    early = shardkit("merge", two)
    assert early.returncode == 1
    assert early.stdout == ""
    assert (
        shardkit("pack", made / "rows.json", "--out", two, *options, "--part", "2/2").stdout == ""
    )
    assert shardkit("merge", two).returncode == 0
    assert digests(two) == digests(one)


def test_export(made: Path, tmp_path: Path) -> None:
    """A folder for datasets.load_from_disk; one that exists is not written into."""
    done = shardkit("export", made / "out", "--to", "hf", tmp_path / "hf")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'hf'}: 57 rows\n")
    before = digests(tmp_path / "hf")
    assert shardkit("export", made / "out", "--to", "hf", tmp_path / "hf").returncode in (1, 2)
    assert digests(tmp_path / "hf") == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, ""),
        (["pakc"], 2, "pakc"),
        (["pack"], 2, "required"),
        (["pack", "ROWS", "--tokenizer", "TOK"], 2, "--out"),
        (["pack", "gone.json", "--out", "NEW", "--tokenizer", "TOK"], 1, "no such input"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "./gone"], 1, "gone"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "EMPTY"], 1, "empty"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--template", "nope"], 1, "nope"),
        (
            ["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--packing", "concat"],
            2,
            "max-len",
        ),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--max-length", "0"], 2, "max"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--max-length", "x"], 2, "max"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--shard-size", "5Q"], 2, "5Q"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--part", "3"], 2, "I/N"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--part", "3/2"], 2, "3"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--compression", "lzo"], 2, "lzo"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--format", "csv"], 2, "csv"),
        (["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--workers", "0"], 2, "workers"),
        (
            ["pack", "ROWS", "--out", "NEW", "--tokenizer", "TOK", "--image-size", "9"],
            2,
            "image-root",
        ),
        (["pack", "BROKEN", "--out", "NEW", "--tokenizer", "TOK"], 1, "line 3"),
        (["pack", "ROWS", "--out", "OTHER", "--tokenizer", "TOK"], 1, "OTHER"),
        (["verify", "EMPTY"], 1, "manifest.json"),
        (["verify", "gone"], 1, "manifest.json"),
        (["verify", "ROWS"], 1, ""),
        (["verify", "OUT", "--tokenizer", "./gone"], 1, "gone"),
        (["verify", "OUT", "--template", "nope"], 1, "nope"),
        (["verify", "OUT", "--source", "gone.json"], 1, "no such input"),
        (["verify", "BADMANIFEST"], 1, "manifest.json"),
        (["inspect", "EMPTY"], 1, "manifest.json"),
        (["inspect", "OUT", "--sample", "57"], 2, "no such sample"),
        (["inspect", "OUT", "--sample", "-58"], 2, "no such sample"),
        (["plan", "OUT", "--world-size", "0"], 2, "world-size"),
        (["inspect", "DAMAGED"], 1, "shard-00000.tar"),
        (["inspect", "DAMAGED", "--sample", "0"], 1, "shard-00000.tar"),
        (["inspect", "DAMAGED/shard-00000.tar"], 1, "shard-00000.tar"),
        (["inspect", "gone.tar"], 1, "gone.tar"),
        (["trace", "OUT", "--step", "99", "--world-size", "2", "--batch-size", "4"], 2, "step 99"),
        (["trace", "OUT", "--step", "0", "--world-size", "2", "--batch-size", "0"], 2, "batch"),
        (
            ["trace", "OUT", "--row", "x.json:3", "--world-size", "2", "--batch-size", "4"],
            2,
            "x.json",
        ),
        (
            ["trace", "OUT", "--row", "rows.json", "--world-size", "2", "--batch-size", "4"],
            2,
            "FILE:N",
        ),
        (
            ["trace", "OUT", "--row", "rows.json:19", "--world-size", "2", "--batch-size", "4"],
            2,
            "rej",
        ),
        ([*TRACE_STATE, "BROKEN"], 2, "JSON"),
        ([*TRACE_STATE, "gone.json"], 2, "gone.json"),
        ([*TRACE_STATE, "ROWS"], 1, "state of a shardkit loader"),
        ([*TRACE_STATE, "ROWS", "--seed", "1"], 2, "--seed"),
        ([*TRACE_STATE, "ROWS", "--group-by-length"], 2, "--group-by-length"),
        ([*TRACE_STATE, "ROWS", "--data-loader", "1"], 2, "--state"),
        ([*TRACE_PLAIN, "--data-loader", "1", "--expand-image-tokens", "4"], 2, "--expand-image"),
        ([*TRACE_PLAIN, "--data-loader", "-1"], 2, "--data-loader"),
        ([*TRACE_PLAIN, "--until", "all"], 2, "--until"),
        ([*TRACE_PLAIN, "--weights", "1", "2"], 2, "1 weights"),
        ([*TRACE_PLAIN, "--weights", "1", "--lanes", "2"], 2, "--lanes"),
        ([*TRACE_PLAIN[:2], *TRACE_PLAIN[1:]], 2, "--weights"),
        (["merge", "EMPTY"], 1, ""),
        (["repair", "DAMAGED", "--source", "gone.json"], 1, "no such input"),
        (["repair", "EMPTY", "--source", "ROWS"], 1, "manifest.json"),
        (["export", "EMPTY", "--to", "hf", "NEW"], 1, "manifest.json"),
        (["export", "DAMAGED", "--to", "hf", "NEW"], 1, "shard-00000.tar"),
        (["export", "OUT", "--to", "csv", "NEW"], 2, "csv"),
    ],
)
def test_what_cannot_be_done_is_said(
    made: Path, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    """Usage errors exit with 2, all else with 1; the cause and what to do are on stderr."""
    names = {
        "ROWS": made / "rows.json",
        "OUT": made / "out",
        "TOK": TOKENIZER,
        "NEW": tmp_path / "new",
        "EMPTY": tmp_path / "empty",
        "OTHER": tmp_path / "OTHER",
        "BROKEN": tmp_path / "broken.json",
        "DAMAGED": tmp_path / "damaged",
        "BADMANIFEST": tmp_path / "bad",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER/thesis.txt").write_text("mine")
    (tmp_path / "broken.json").write_text('[\n{"instruction": "a", "output": "b"},\n,\n{}]')
    shutil.copytree(made / "out", tmp_path / "damaged")
    (tmp_path / "damaged/shard-00000.tar").write_bytes(b"x" * 4096)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/manifest.json").write_bytes(b'{"format": "shardkit", "version": ')
    given = []
    for word in arguments:
        head, slash, tail = word.partition("/")
        given.append(f"{names[head]}{slash}{tail}" if head in names else word)

    done = shardkit(*given, cwd=tmp_path)

    assert done.returncode == status, done.stderr
    assert words in done.stderr + (done.stdout if not arguments else "")
    if arguments:
        assert done.stderr
        assert done.stdout == "" or arguments[0] == "repair"
    assert not (tmp_path / "new/manifest.json").exists()
    assert (tmp_path / "OTHER/thesis.txt").read_text() == "mine"


NASTY = "[red]x[/red] [link=file:///etc]\x1b[31mred\x1b]0;title\x07 \x9b31m \u202etxt\x00 [/] \\["


def test_data_does_not_drive_the_terminal(tmp_path: Path) -> None:
    """Control characters in text, names and ids are shown as escapes, markup as it is."""
    rows = [{"instruction": NASTY, "output": NASTY, "id": NASTY}] * 3
    source = write_json(tmp_path / "rows[red]\x1b[31m.json", rows)
    out = tmp_path / "out"
    pack_small(source, out, max_length=None)
    for arguments in (
        ["inspect", out, "--sample", "0"],
        ["inspect", out],
        ["verify", out],
        ["trace", out, "--step", "0", "--world-size", "1", "--batch-size", "2"],
        ["pack", source, "--out", tmp_path / "again", *PACK],
        ["pack", source, "--dry-run", *PACK],
        ["pack", source, "--out", out, *PACK, "--shuffle-seed", "1"],
    ):
        done = shardkit(*arguments)
        shown = done.stdout + done.stderr
        for character in "\x1b\x07\x00\x9b\u202e":
            assert character not in shown, (arguments[0], character)
    shown = shardkit("inspect", out, "--sample", "0").stdout.replace("\n", "")
    assert "[red]x[/red]" in shown
    assert r"\x1b[31mred" in shown


def test_pictures_are_saved(tmp_path: Path) -> None:
    """inspect --save-images writes the stored bytes under names of its own."""
    source = write_llava(tmp_path, 8)
    pack_small(source, tmp_path / "out", image_root=tmp_path / "images")
    done = shardkit("inspect", tmp_path / "out", "--sample", "1", "--save-images", tmp_path / "s")
    assert done.returncode == 0
    saved = sorted((tmp_path / "s").iterdir())
    originals = {path.read_bytes() for path in (tmp_path / "images").glob("1-*")}
    assert {path.read_bytes() for path in saved} == originals
    assert len(saved) == 2


def _n_receipts(out: Path) -> int:
    return len(list(out.glob(".building/part-*.json")))


@pytest.mark.slow
@pytest.mark.usefixtures("can_be_interrupted")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_and_again(tmp_path: Path, workers: int) -> None:
    """SIGINT to the whole group, as a terminal sends it: exit 130, one line; then it resumes."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(12_000))
    out = tmp_path / "out"
    arguments = ["pack", source, "--out", out, *PACK, "--part-rows", "100", "--workers", workers]
    arguments += ["--tokenizer-engine", "hf"]
    command = [sys.executable, "-m", "shardkit_cli.main", *map(str, arguments)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while _n_receipts(out) < 5:
            assert process.poll() is None, "the pack was too quick to be interrupted"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "shardkit: interrupted" in stderr
    assert stdout == ""
    assert not (out / "manifest.json").exists()

    n_done = _n_receipts(out)
    assert n_done >= 5
    assert shardkit(*arguments).returncode == 0
    whole = tmp_path / "whole"
    pack_small(source, whole, part_rows=100)
    assert digests(out) == digests(whole)


def test_packs_of_images_are_as_full_as_the_model_sees_them(tmp_path: Path) -> None:
    """pack and inspect count an image as its --image-tokens, and name the same share."""
    source = write_llava(tmp_path, 8)
    options = ["--image-root", tmp_path / "images", "--image-tokens", "20", "--packing", "best-fit"]
    packed = shardkit("pack", source, "--out", tmp_path / "out", *PACK, *options)
    shown = shardkit("inspect", tmp_path / "out", "--json").stdout
    filled = json.loads(shown)["summary"]["filled"]
    assert filled > 0.5
    (line,) = [line for line in packed.stdout.splitlines() if "packs filled" in line]
    assert line.split()[2] == f"{100 * filled:.1f}"
