"""What is installed is what is in the tree, and starts quickly."""

from __future__ import annotations

import argparse
import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from floors import NOT_RUN, floors, numbers_of
from records import TOKENIZER, alpaca_rows, write_json
from shardkit_cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "rich", "datasets", "pyarrow", "ray", "deepspeed")


def in_a_fresh_python(code: str) -> str:
    """What a script prints; it must not fail."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_listed() -> None:
    """setup.cfg installs every folder with code: a forgotten one is missing from wheels only."""
    if not (ROOT / "setup.cfg").exists():
        pytest.skip("the sources are not beside the tests")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("shardkit/**/*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"shardkit_cli"}
    for folder in folders:
        assert (ROOT / folder / "__init__.py").exists(), folder
    assert (ROOT / "shardkit/py.typed").exists()
    assert (ROOT / "cli/py.typed").exists()


def test_importing_the_library_is_light() -> None:
    """`import shardkit` loads nothing heavy."""
    code = f"import sys, shardkit; print([m for m in {HEAVY} if m in sys.modules])"
    assert in_a_fresh_python(code).strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)]
)
def test_help_is_light(arguments: list[str]) -> None:
    """Help of every command is printed without torch or transformers, and exits with 0."""
    code = f"""
import sys
from shardkit_cli.main import main
try:
    main({arguments!r})
except SystemExit as err:
    assert err.code == 0, err.code
print("loaded", [m for m in {HEAVY} if m in sys.modules])
"""
    out = in_a_fresh_python(code)
    assert out.endswith("loaded []\n")
    assert "shardkit" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_complete(name: str) -> None:
    """A command has a summary, a description, examples, a parser and `run`."""
    module = importlib.import_module(f"shardkit_cli.{name}_cmd")
    assert COMMANDS[name]
    assert module.DESCRIPTION.strip()
    assert f"shardkit {name}" in module.EXAMPLES
    assert callable(module.run)
    parser = argparse.ArgumentParser()
    module.build_parser(parser)
    assert len(parser._actions) > 1
    for action in parser._actions:
        assert action.help, f"shardkit {name}: {action.dest} has no help"


def test_every_command_module_is_listed() -> None:
    """No command lies in cli/ that nobody can call."""
    folder = Path(importlib.import_module("shardkit_cli").__file__ or "").parent
    assert {path.stem.removesuffix("_cmd") for path in folder.glob("*_cmd.py")} == set(COMMANDS)


def test_floors_are_those_that_are_run() -> None:
    """constraints-floors.txt has the lowest version of every dependency, and no other."""
    if not (ROOT / "constraints-floors.txt").exists():
        pytest.skip("the sources are not beside the tests")
    lines = (ROOT / "constraints-floors.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name, least in floors().items():
        assert name in NOT_RUN or numbers_of(pinned[name]) == numbers_of(least), name
    assert set(pinned) == set(floors())


def test_a_faster_engine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pack without the fast engine says what to install."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(3))
    words = ["pack", str(source), "--tokenizer", str(TOKENIZER), "--template", "qwen_chat", "-o"]
    monkeypatch.setattr("shardkit_cli.pack_summary.missing_engines", lambda: ["fastokens"])
    assert main([*words, str(tmp_path / "hf"), "--tokenizer-engine", "hf"]) == 0
    assert "pip install fastokens" in capsys.readouterr().err
