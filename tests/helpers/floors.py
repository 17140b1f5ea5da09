"""What an environment with the lowest versions of setup.cfg must do: `make floors`.

Run with that environment's Python. It looks whether the versions that are installed are the floors
(not with --any, for another Python and whatever is newest), and then packs, verifies, inspects,
reports, appends, exports and loads the demo's data.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples/data"
TOKENIZER = ROOT / "tests/data/tokenizer"
NOT_RUN = {"torch"}
"""One build of it is to be had; its floor is not tried."""
EXTRAS = ("fast", "parquet", "datasets", "trainer", "completion", "view", "remote")
"""Extras whose floors are installed and used here."""


def floors() -> dict[str, str]:
    """The lowest version of each dependency that setup.cfg allows."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    for extra in EXTRAS:
        lines += config["options.extras_require"][extra].split("\n")
    found = (re.match(r"([A-Za-z0-9_-]+)(?:\[\w+\])?>=([0-9.]+)", line.strip()) for line in lines)
    return {one[1].lower(): one[2] for one in found if one}


def shown(*words: object) -> str:
    """What a command of shardkit prints; it must end well."""
    print("$ shardkit", *words, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "shardkit", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        sys.exit(f"status {done.returncode}")
    return done.stdout


def main() -> None:
    """Run everything."""
    for name, least in floors().items() if "--any" not in sys.argv else ():
        if name not in NOT_RUN and numbers_of(version(name)) != numbers_of(least):
            sys.exit(f"{name} {version(name)} is installed, and {least} is the floor")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        packed()
        loaded()
        exported()
        served()
    names = ("numpy", "torch", "transformers", "tokenizers", "msgspec", "pyarrow", "datasets")
    print("good: Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in names))


def packed() -> None:
    """Text with both engines and two workers, chats packed, Parquet, pictures."""
    arrow, parquet = (import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    tokens = ("--tokenizer", TOKENIZER, "--template", "qwen_chat", "--max-length", 256)
    alpaca, chats = DATA / "alpaca.json", DATA / "chats.jsonl"
    shown("pack", alpaca, "-o", "text", *tokens, "--workers", 2)
    shown("pack", alpaca, "-o", "reference", *tokens, "--tokenizer-engine", "hf")
    made = [json.loads(Path(name, "manifest.json").read_text()) for name in ("text", "reference")]
    if made[0]["content"] != made[1]["content"]:
        sys.exit("the engines made different bytes")
    print("engines:", *(one["engine"] for one in made))
    shown("verify", "text", "--source", alpaca, "--workers", 2)
    shown("pack", chats, "-o", "chats", "--tokenizer", TOKENIZER, "--template", "tokenizer",
          "--max-length", 256, "--packing", "best-fit")  # fmt: skip
    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(50)]
    parquet.write_table(arrow.Table.from_pylist(rows), "rows.parquet")
    shown("pack", "rows.parquet", "-o", "table", *tokens, "--compression", "zstd")
    shown("pack", DATA / "llava.json", "--image-root", DATA / "images", "--image-tokens", 16,
          "-o", "llava", *tokens)  # fmt: skip
    for name in ("chats", "table", "llava"):
        shown("verify", name)
        json.loads(shown("inspect", name, "--sample", "0", "--json"))
        shown("report", name, "-o", f"{name}.html", "-q")
    shown("append", "table", chats)
    shown("card", "text")
    shown("completion", "bash")


def loaded() -> None:
    """Batches of text, packs and decoded pictures; a state; a Trainer's own loop of two steps."""
    from shardkit import ShardLoader

    for name in ("text", "chats", "llava"):
        loader = ShardLoader(name, batch_size=2, seed=1, tokenizer=TOKENIZER)
        batches = list(loader)
        loader.load_state_dict(loader.state_dict())
        print(name, len(batches), "batches", tuple(batches[0]["input_ids"].shape))


def exported() -> None:
    """What datasets loads again has the dataset's rows."""
    datasets = import_module("datasets")
    shown("export", "text", "--to", "hf", "text-hf", "-q")
    n_rows = json.loads(Path("text/manifest.json").read_text())["sources"][0]["n_kept"]
    if len(datasets.load_from_disk("text-hf")) != n_rows:
        sys.exit("datasets loads other rows")


def served() -> None:
    """The dataset from a web server (aiohttp), and the app of `view` (starlette)."""
    from servers import file_server

    with file_server(Path.cwd()) as url:
        shown("verify", f"{url}/text", "--cache-dir", "cache")
        shown("pack", f"{url}/rows.parquet", "-o", "fetched", "--tokenizer", TOKENIZER)
    viewed()


def viewed() -> None:
    """A page of `view`, over its own server (uvicorn, starlette)."""
    command = [sys.executable, "-m", "shardkit", "view", "text"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            opener = build_opener(HTTPCookieProcessor())
            page = opener.open(address, timeout=60).read().decode()
        finally:
            server.terminate()
    if "alpaca.json" not in page:
        sys.exit("view shows no sample")


def numbers_of(text: str) -> list[int]:
    """A version as numbers, without zeros at its end and what stands behind a +."""
    numbers = [int(number) for number in re.findall(r"\d+", text.split("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


if __name__ == "__main__":
    main()
