"""A new thing goes in at one place: CONTRIBUTING's table, tried with a toy of each kind.

The package is copied; each toy is what its row of the table says, a file or an entry. One process
then uses them all over the command line, the loader and the generated pages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HELPERS = Path(__file__).with_name("helpers")

FILES = {
    "shardkit/sources/toy.py": """
from shardkit.conversation import Conversation, Message


def looks_like(record):
    return isinstance(record, dict) and "ask" in record


def read(record):
    fields = record.root()
    messages = (Message("user", fields.text("ask")), Message("assistant", fields.text("tell")))
    return Conversation(messages)
""",
}
ENTRIES = {
    "shardkit/sources/source_format.py": """
from shardkit.sources import toy
SOURCES["toy"] = SourceFormat("toy", "`ask`, `tell`", toy.looks_like, toy.read)
""",
    "shardkit/format/codec.py": """
CODECS["toy"] = Codec(
    ".tar.toy", range(1, 3), 1, ZstdSink, ZstdStream, ranged_zstd, is_plain=False
)
""",
    "shardkit/tokens/tokenizer_engines.py": """
def encode_as_a_toy(tokenizer):
    return backend_encode(tokenizer.backend)


ENGINES["toy"] = Engine(encode_as_a_toy)
""",
    "shardkit/tokens/layout.py": '''
def by_twos(units, limits):
    """Every two units in a pack."""
    numbers = np.arange(len(units.lengths))
    return Layout(numbers, np.zeros_like(numbers), units.lengths, numbers // 2)


RULES["toy"] = PackingRule(by_twos)
''',
    "shardkit/builder/build_engines.py": '''
from shardkit.builder.job import EngineOptions


class ToyOptions(EngineOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the toy."""

    toy_note: Annotated[str, Flag("what the toy says", "TEXT", RUNNING)] = ""


def run_toy(job):
    print("the toy says", job.options.toy_note)
    return _run_here(job)


ENGINES["toy"] = BuildEngine(run_toy, options=ToyOptions)
''',
    "shardkit/processors/families.py": """
from dataclasses import replace
PROCESSORS["toy"] = replace(PROCESSORS["qwen2_vl"], classes=("ToyProcessor",))
""",
}
"""The table of each kind; what is appended to its module."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process sees of all toys (helpers/run_doors.py)."""
    folder = tmp_path_factory.mktemp("doors")
    for name, copy in (("shardkit", "shardkit"), ("cli", "shardkit_cli"), ("docs", "docs")):
        shutil.copytree(ROOT / name, folder / copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    for name, text in ENTRIES.items():
        with open(folder / name, "a") as file:
            file.write(text)
    path = os.pathsep.join([str(folder), str(HELPERS)])
    done = subprocess.run(
        [sys.executable, HELPERS / "run_doors.py", folder],
        env=os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    seen: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return seen


def test_the_copy_is_what_runs(found: dict[str, Any]) -> None:
    """Not the package that is installed."""
    assert "doors" in found["package"]


@pytest.mark.parametrize(
    "flag", ["--format", "--compression", "--tokenizer-engine", "--packing", "--engine"]
)
def test_the_command_offers_it(found: dict[str, Any], flag: str) -> None:
    """Its help names the toy beside the others, in the option's own choices."""
    assert "toy" in found["help"][flag]


def test_an_engine_brings_its_own_options(found: dict[str, Any]) -> None:
    """A flag of the command, and what it says arrives."""
    assert "--toy-note" in found["help"]
    assert "the toy says hello" in found["packed"]


def test_all_of_them_make_a_dataset(found: dict[str, Any]) -> None:
    """Packed over the command line with every toy: verify calls it good, and the loader reads the
    tokens that the built-in things give."""
    assert found["status"] == [0, 0]
    assert found["recipe"] == ["toy", "toy"]
    assert found["names"] == ["shard-00000.tar.toy"]
    assert found["engine"] == "toy"
    assert found["tokens"] == found["expected"]
    assert found["n_packs"] * 2 == found["n_rows"]


def test_a_format_is_detected(found: dict[str, Any]) -> None:
    """By `auto`, from what its rows look like."""
    assert found["detected"] == "toy"


def test_a_processor_family_packs_and_reads(found: dict[str, Any]) -> None:
    """Rows with pictures through a processor of the new class: pixels come out."""
    assert found["family"] == "toy"
    assert found["pixels"] > 0


def test_the_generated_pages_name_it(found: dict[str, Any]) -> None:
    """`make docs` needs no other edit."""
    assert found["pages"] == {"cli.md": True, "sources.md": True}
