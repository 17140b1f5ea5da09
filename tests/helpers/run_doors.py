"""Use a toy of every kind that tests/test_doors.py has put into a copy of the package."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processors import build
from records import TOKENIZER, write_json
from shardkit_cli.main import main as shardkit
from shardkit_cli.main import make_parser
from vlm_rows import write

import shardkit as package
from shardkit import ShardLoader, ShardTable, load_manifest, pack


def main() -> None:
    folder = Path(sys.argv[1])
    seen: dict[str, Any] = {"package": str(Path(package.__file__).parent)}
    seen["help"] = dict(options_of("pack"))
    rows = [{"ask": f"Is {i} a number?", "tell": f"Yes, {i} is."} for i in range(10)]
    source = write_json(folder / "rows.json", rows)
    seen |= text(folder, source)
    seen |= pictures(folder)
    reference = folder / "docs" / "reference"
    sys.path.insert(0, str(reference))
    sys.argv = ["make.py"]
    said(runpy.run_path(str(reference / "make.py"))["main"])
    names = ("cli.md", "sources.md")
    seen["pages"] = {name: "toy" in (reference / name).read_text() for name in names}
    (folder / "seen.json").write_text(json.dumps(seen))


def options_of(command: str) -> Iterator[tuple[str, str]]:
    """The flags of a command, and what its help says of each."""
    for action in make_parser(command)._actions:
        for flag in action.option_strings:
            yield flag, f"{action.help} {list(action.choices or [])}"


def said(call: Callable[[], object]) -> tuple[object, str]:
    """What a call returns, and what it writes."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        return call(), text.getvalue()


def text(folder: Path, source: Path) -> dict[str, Any]:
    """One dataset of all toys but the processor."""
    out, plain = folder / "toys", folder / "plain"
    words = ["pack", str(source), "--out", str(out), "--tokenizer", str(TOKENIZER)]
    words += ["--template", "qwen_chat", "--max-length", "128", "--format", "toy"]
    words += ["--compression", "toy:2", "--tokenizer-engine", "toy", "--packing", "toy"]
    words += ["--engine", "toy", "--toy-note", "hello"]
    packed, printed = said(lambda: shardkit(words))
    verified, more = said(lambda: shardkit(["verify", str(out)]))
    if packed or verified:
        raise SystemExit(printed + more)
    manifest = load_manifest(out)
    pack(source, plain, tokenizer=TOKENIZER, template="qwen_chat", engine="hf")
    expected = [sample["input_ids"].tolist() for sample in ShardTable(plain)]
    batches = list(ShardLoader(out, 1, rank=0, world_size=1, shuffle=False))
    return {
        "status": [packed, verified],
        "packed": printed,
        "recipe": [manifest.recipe["source_format"], manifest.recipe["packing"]],
        "names": [shard.name for shard in manifest.shards],
        "engine": manifest.engine.split()[0],
        "tokens": np.concatenate([batch["input_ids"][0].numpy() for batch in batches]).tolist(),
        "expected": [token for sample in expected for token in sample],
        "n_packs": manifest.n_samples,
        "n_rows": len(expected),
        "detected": load_manifest(plain).recipe["source_format"],
    }


def pictures(folder: Path) -> dict[str, Any]:
    """A dataset of a family whose class nobody knew before."""
    processor = build("qwen2_vl")
    processor.__class__ = type("ToyProcessor", (type(processor),), {})
    out = folder / "pictures"
    source = write(folder, 4)
    images = folder / "images"
    pack(source, out, processor=processor, image_root=images, max_length=400, workers=1)
    recipe = load_manifest(out).recipe
    loader = ShardLoader(out, 4, rank=0, world_size=1, processor=processor)
    batch = next(iter(loader))
    return {
        "family": recipe["images"]["processor"]["family"],
        "pixels": int(batch["pixel_values"].numel()),
    }


if __name__ == "__main__":
    main()
