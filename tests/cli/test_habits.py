"""What fingers type that learned other tools: units, spellings, ranges, names, shells."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launch import environment
from records import TOKENIZER, alpaca_rows, pack_small, write_json
from shardkit_cli.completion_cmd import SHELLS
from shardkit_cli.main import COMMANDS, main
from shardkit_cli.render import seconds

from shardkit.dataset import open_dataset
from shardkit.errors import UsageError
from shardkit.report import find_samples
from shardkit.units import count_of, length_of, rows_or_share, side_of, size_of

SAID = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`: 30 rows in several shards; `bad`: with a shard that is cut."""
    folder = tmp_path_factory.mktemp("habits")
    source = write_json(folder / "rows.json", alpaca_rows(30))
    pack_small(source, folder / "data", shard_size=12_000)
    pack_small(source, folder / "bad")
    shard = folder / "bad/shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    return folder


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("65536", 65536),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64MiB", 64 << 20),
        ("64MB", 64_000_000),
        ("200KB", 200_000),
        ("200 kb", 200_000),
        ("1GiB", 1 << 30),
        ("1.5G", 3 << 29),
        ("100B", 100),
    ],
)
def test_sizes_have_units(text: str, n: int) -> None:
    """M and MiB are powers of 1,024, MB of 1,000, as for GNU's tools."""
    assert size_of(text) == n


def test_counts_and_lengths_have_units() -> None:
    """5k rows are 5,000; a length of 4k is 4,096, as contexts are named."""
    assert [count_of(t) for t in ("5000", "5_000", "5k", "2M", "-3")] == [
        5000,
        5000,
        5000,
        2_000_000,
        -3,
    ]
    assert [length_of(t) for t in ("4096", "4k", "4K", "128k", "0.5k")] == [
        4096,
        4096,
        4096,
        131_072,
        512,
    ]
    for parse in (size_of, count_of, length_of):
        for wrong in ("", "k", "4x", "4kk", "1.3", "0x10", "٤", "4 4", "1e3", "0.0001k"):
            with pytest.raises(ValueError, match="is not a"):
                parse(wrong)


def test_shares_and_sides() -> None:
    """1% is a share; 5k are rows; a square has one side."""
    assert [rows_or_share(t) for t in ("1%", "0.5", "100", "5k", "0")] == [0.01, 0.5, 100, 5000, 0]
    assert [side_of(t) for t in ("336", "336x336", "336px")] == [336] * 3
    assert [seconds(t) for t in (4.24, 59.94, 59.97, 3599.6)] == [
        "4.2 s", "59.9 s", "1 min 00 s", "1 h 00 min"
    ]  # fmt: skip
    for wrong in ("100%", "x%", "-5", "1e400"):
        with pytest.raises(ValueError, match="is not a number of rows"):
            rows_or_share(wrong)
    with pytest.raises(ValueError, match="is no square"):
        side_of("336x224")


def test_a_pack_in_other_spellings(folder: Path, tmp_path: Path, capsys: SAID) -> None:
    """-o, --max_length, --shard_size=20KB and 4k make the same bytes; -q is quiet."""
    common = [
        "pack",
        str(folder / "rows.json"),
        "--tokenizer",
        str(TOKENIZER),
        "--template",
        "qwen_chat",
    ]
    assert (
        main([*common, "-o", str(tmp_path / "a"), "--max_length", "4k", "--shard_size=20KB", "-q"])
        == 0
    )
    said = capsys.readouterr()
    assert said.out == said.err == ""
    plain = ["--out", str(tmp_path / "b"), "--max-length", "4096", "--shard-size", "20000"]
    assert main([*common, *plain]) == 0
    a, b = (open_dataset(tmp_path / name).manifest for name in "ab")
    assert a.fingerprint == b.fingerprint
    assert a.content == b.content
    with pytest.raises(SystemExit) as caught:
        main([*common, "-o", str(tmp_path / "c"), "--max-length", "4x"])
    assert caught.value.code == 2
    assert "4096 or 4k" in capsys.readouterr().err


def test_samples_by_range(folder: Path, capsys: SAID) -> None:
    """-1 is the last, 3:6 three, -2: the last two, FILE:ROW a row; --head the first ones."""
    dataset = open_dataset(folder / "data")
    every = find_samples(dataset, "0:")
    assert len(every) == 30
    assert find_samples(dataset, "-1") == every[-1:]
    assert find_samples(dataset, "3:6") == every[3:6]
    assert find_samples(dataset, "-2:") == every[-2:]
    assert find_samples(dataset, ":4") == every[:4]
    assert find_samples(dataset, "rows.json:7") == [every[7]]
    for wrong in ("30", "-31", "6:3", ":", "rows.json:30", "x:1", "1:2:3"):
        with pytest.raises(UsageError):
            find_samples(dataset, wrong)
    assert main(["inspect", str(folder / "data"), "--sample", "-1", "--json"]) == 0
    last = json.loads(capsys.readouterr().out)
    assert last["segments"][0]["row"] == 29
    assert main(["inspect", str(folder / "data"), "--sample", "3:6", "--json"]) == 0
    assert [s["segments"][0]["row"] for s in json.loads(capsys.readouterr().out)] == [3, 4, 5]
    assert main(["inspect", str(folder / "data"), "--head", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Task 0" in shown
    assert "Task 1" in shown
    assert "Task 2" not in shown


def test_verify_takes_several(folder: Path, capsys: SAID) -> None:
    """Each is told; the status is the worst; one that is not there does not hide the next."""
    data, bad = str(folder / "data"), str(folder / "bad")
    assert main(["verify", data, data, "--workers", "auto"]) == 0
    assert capsys.readouterr().out.count("good: no problem found") == 2
    assert main(["verify", data, str(folder / "nowhere"), bad, "--json"]) == 1
    said = capsys.readouterr()
    assert [one["ok"] for one in json.loads(said.out)] == [True, False]
    assert "no manifest.json" in said.err
    assert main(["verify", "-q", data]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("chatml", "Did you mean qwen_chat?"),
        ("qwen2.5", "Did you mean qwen_chat?"),
        ("Llama-3", "Did you mean llama3_chat?"),
        ("vicuna_v1", "Did you mean vicuna?"),
        ("qwen_cht", "Did you mean qwen_chat"),
        ("alpaca", "what rows look like"),
    ],
)
def test_templates_by_other_names(
    folder: Path, tmp_path: Path, capsys: SAID, name: str, meant: str
) -> None:
    """What other tools call a template leads to ours; nothing is left behind."""
    words = ["pack", str(folder / "rows.json"), "-o", str(tmp_path / "out"), "--template", name]
    assert main([*words, "--tokenizer", str(TOKENIZER)]) == 1
    assert meant in capsys.readouterr().err
    assert not (tmp_path / "out/.building").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command(shell: str, capsys: SAID) -> None:
    """The script names all commands and options; bash itself takes it and completes."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert command in script
    assert "max-length" in script
    if shell == "bash":
        ask = "COMP_WORDS=(shardkit ver); COMP_CWORD=1; _shtab_shardkit; echo ${COMPREPLY[@]}"
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["verify"]


def test_a_narrow_terminal_keeps_every_column(
    folder: Path, capsys: SAID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 40 columns the ledger's file and figures are all there, and no line is wider."""
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["inspect", str(folder / "data")]) == 0
    shown = capsys.readouterr().out
    assert "rows.json" in shown
    assert "truncated" in shown
    assert "shard-00000.tar" in shown
    assert max(map(len, shown.splitlines())) <= 40


def test_progress_for_programs(folder: Path, capsys: SAID) -> None:
    """--log-json: each line on stderr is an object; the last says that all is done."""
    assert main(["verify", str(folder / "data"), "--log-json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["doing"] == "verifying"
    assert lines[-1]["done"] == lines[-1]["total"] > 0


def test_all_of_stderr_is_for_programs(
    folder: Path, tmp_path: Path, capsys: SAID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--log-json: what is told beside progress is JSON too, each stage with rate and time left."""
    rows = (folder / "rows.json").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(rows)))
    words = ["pack", "-", "-o", str(tmp_path / "out"), "--tokenizer", str(TOKENIZER)]
    assert main([*words, "--template", "qwen_chat", "--log-json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    stages = [line["doing"] for line in lines if "doing" in line]
    assert stages == ["fetching stdin", "scanning", "packing", "committing"]
    assert all({"per_second", "seconds_left"} <= set(line) for line in lines if "doing" in line)
    assert lines[-1] == {"note": f"Next: shardkit verify {tmp_path / 'out'}"}


def test_rows_as_json_lines(folder: Path, tmp_path: Path, capsys: SAID) -> None:
    """export --to jsonl: every row with ids and labels, and a file that is there stays."""
    out = tmp_path / "rows.jsonl"
    assert main(["export", str(folder / "data"), "--to", "jsonl", str(out), "-q"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 30
    dataset = open_dataset(folder / "data")
    tokens = dataset.open_shard(0).tokens(0)
    assert [rows[0]["input_ids"], rows[0]["labels"]] == tokens[:2].tolist()
    assert main(["export", str(folder / "data"), "--to", "jsonl", str(out)]) == 1
    assert "there already" in capsys.readouterr().err


def test_a_file_that_was_probably_meant(folder: Path, tmp_path: Path, capsys: SAID) -> None:
    """A wrong letter in a file's name."""
    words = ["pack", str(folder / "rows.jsn"), "-o", str(tmp_path / "out")]
    assert main([*words, "--tokenizer", str(TOKENIZER)]) == 1
    assert f"Did you mean {folder / 'rows.json'}?" in capsys.readouterr().err


def test_append_shows_how_far_it_is(folder: Path, tmp_path: Path) -> None:
    """In a terminal the bar of append has a percentage."""
    pack_small(folder / "rows.json", tmp_path / "data")
    write_json(tmp_path / "more.json", alpaca_rows(20, seed=4))
    shown = in_a_terminal(["append", str(tmp_path / "data"), str(tmp_path / "more.json")])
    assert "100%" in shown


def in_a_terminal(words: list[str]) -> str:
    """What a command shows on a terminal of its own; it must end well."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "shardkit", *words],
        stdout=theirs,
        stderr=theirs,
        env=environment() | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 65536):
            shown += more
    except OSError:
        pass  # the terminal is gone when its last process is
    os.close(ours)
    assert process.wait(120) == 0, shown.decode()
    return shown.decode()


@pytest.mark.usefixtures("can_be_interrupted")
def test_a_pack_that_would_fail_again_names_no_command(
    folder: Path, tmp_path: Path, capsys: SAID
) -> None:
    """Too many rejected rows, and other options then: the error says what to do, not to repeat."""
    rows: list[Any] = [{"instruction": "a", "output": "b", "chosen": "c"} for _ in range(9)]
    source = write_json(tmp_path / "rows.json", [*rows, *alpaca_rows(1)])
    words = ["pack", str(source), "-o", str(tmp_path / "out"), "--tokenizer", str(TOKENIZER)]
    words += ["--template", "qwen_chat", "-q"]
    assert main(words) == 1
    assert "goes on with" not in capsys.readouterr().err
    assert main([*words, "--ignore-field", "chosen"]) == 1
    said = capsys.readouterr().err
    assert "goes on with" not in said
    assert "--overwrite" in said
    assert main([*words, "--max-rejects", "95%"]) == 0


def test_an_interrupted_pack_says_how_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-C: one line with the command that goes on; it does."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(700))
    words = [str(source), "-o", str(tmp_path / "out"), "--tokenizer", str(TOKENIZER)]
    words += ["--template", "qwen_chat", "--part-rows", "10", "--tokenizer-engine", "hf"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shardkit", "pack", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    parts = tmp_path / "out/.building"
    while not list(parts.glob("part-*.json")) and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("it had ended before it was interrupted")
    assert process.returncode == 130
    assert f"It goes on with:\n  shardkit pack {' '.join(words)}\nshardkit: interrupted\n" in said
    assert main(["pack", *words]) == 0
    assert open_dataset(tmp_path / "out").manifest.n_samples == 700
