"""Inputs on the hub, and names of models: the hub's own client against a server on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hub_server import Hub, Repo, hub_server
from launch import environment
from records import TOKENIZER, alpaca_rows, write_json

from shardkit.dataset import load_manifest

CODE = """
import contextlib, io, json, sys
from shardkit_cli.main import main
said = {}
for line in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        status = main(["pack", *line.split()])
    said[line] = [status, out.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, str], Hub]:
    """The folder; what each command said, by its first word; what the hub was asked."""
    folder = tmp_path_factory.mktemp("hub")
    for name, n in (("train", 9), ("test", 4)):
        (folder / "repo/data").mkdir(parents=True, exist_ok=True)
        write_json(folder / f"repo/data/{name}-00000.jsonl", alpaca_rows(n, seed=n))
    (folder / "repo/README.md").write_text("# rows\n")
    (folder / "repo/dataset_infos.json").write_text('{\n "default": {}\n}')
    (folder / "tok").mkdir()
    (folder / "tok/tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    main = {"main": folder / "repo", "v1": folder / "repo"}
    hub = Hub(
        {
            "datasets/me/data": Repo(main),
            "datasets/me/private": Repo(main, token="hf_of_another"),
            "datasets/me/gated": Repo(main, is_gated=True),
            "models/me/gated": Repo(main, is_gated=True),
            "models/me/down": Repo(main, is_down=True),
        }
    )
    options = f"--tokenizer {TOKENIZER} --template qwen_chat -q"
    row = f"{folder}/repo/data/test-00000.jsonl -o never --template qwen_chat"
    lines = {
        "whole": f"hf://datasets/me/data -o whole {options}",
        "file": f"hf://datasets/me/data@v1/data/test-00000.jsonl -o file {options}",
        "glob": f"hf://datasets/me/data/*/t*.jsonl -o glob --split test {options}",
        "local whole": f"repo -o local-whole {options}",
        "local file": f"repo/data/test-00000.jsonl -o local-file {options}",
        "local glob": f"repo/*/t*.jsonl -o local-glob --split test {options}",
        "repository": f"hf://datasets/me/dta -o never {options}",
        "revision": f"hf://datasets/me/data@v9 -o never {options}",
        "missing": f"hf://datasets/me/data/data/nothing.jsonl -o never {options}",
        "private": f"hf://datasets/me/private -o never {options}",
        "gated": f"hf://datasets/me/gated -o never {options}",
        "no model": f"{row} --tokenizer tk",
        "gated model": f"{row} --tokenizer me/gated",
        "down": f"{row} --tokenizer me/down",
        "below": f"{row} --tokenizer tok/tokenizer.jsn",
        "empty": f"{row} --tokenizer repo",
    }
    with hub_server(hub) as url:
        own = {
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "home"),
            "HF_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
        }
        own |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(list(lines.values()))],
            capture_output=True,
            text=True,
            env=environment() | own,
            cwd=folder,
            check=True,
            timeout=500,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return folder, {name: "{} {}".format(*found[line]) for name, line in lines.items()}, hub


Said = tuple[Path, Mapping[str, str], Hub]


@pytest.mark.parametrize(("name", "n"), [("whole", 9), ("file", 4), ("glob", 4)])
def test_rows_from_the_hub_make_the_bytes_of_local_ones(said: Said, name: str, n: int) -> None:
    """A repository without its test rows, a file of a revision, a glob."""
    folder, words, hub = said
    assert words[name].startswith("0 "), words[name]
    here, there = folder / f"local-{name}", folder / name
    assert load_manifest(there).n_samples == n
    for file in ("shard-00000.tar", "manifest.json", "rejects.jsonl"):
        assert (there / file).read_bytes() == (here / file).read_bytes(), file
    if name == "whole":
        assert "test-00000.jsonl" in words[name]
        assert "dataset_infos.json" in words[name]
    fetched = [one for one in hub.asked if "/me/data/resolve/" in one and "data/test" in one]
    assert len(fetched) == 2, "a file that is left out was fetched"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("repository", "no such repository on the hub"),
        ("revision", "no such revision on the hub"),
        ("missing", "no such file or folder on the hub"),
        ("private", "hf auth login"),
        ("gated", "to those who were granted access"),
        ("no model", "Did you mean tok?"),
        ("gated model", "to those who were granted access"),
        ("down", "the hub cannot be reached"),
        ("below", "Did you mean tok/tokenizer.json?"),
        ("empty", "there is no tokenizer in this folder"),
    ],
)
def test_what_is_not_on_the_hub_is_named(said: Said, name: str, says: str) -> None:
    """In two lines, with what to do; nothing is left behind, and nobody tries for a minute."""
    folder, words, hub = said
    assert words[name].startswith("1 "), words[name]
    assert says in words[name]
    assert len(words[name].splitlines()) == 2
    assert not (folder / "never").exists()
    assert sum("me/down" in one for one in hub.asked) <= 2
