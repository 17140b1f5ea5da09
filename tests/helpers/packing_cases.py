"""The packs whose bytes must not depend on anything: text and LLaVA, packed and not, compressed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from records import TOKENIZER, alpaca_rows, write_json, write_llava

KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "text-packed": {"packing": "best-fit", "shuffle_seed": 3},
    "text-zstd": {"packing": "concat", "compression": "zstd:1"},
    "llava": {"image_tokens": 4, "max_length": 128},
    "llava-packed": {"image_tokens": 4, "max_length": 128, "packing": "best-fit"},
}


def make_case(kind: str, folder: Path, n: int = 220) -> tuple[Path, dict[str, Any]]:
    """A source of n rows below the folder, some of them bad, and the options of this kind."""
    options = dict(KINDS[kind])
    if kind.startswith("llava"):
        options["image_root"] = folder / "images"
        return write_llava(folder, n), options
    return write_json(folder / "rows.json", alpaca_rows(n, n_bad=5)), options


def command(source: Path, out: Path, options: dict[str, Any], *more: str) -> list[str]:
    """The command line that packs as `pack_small` does."""
    words = [sys.executable, "-m", "shardkit", "pack", str(source), "--out", str(out)]
    defaults = {
        "tokenizer": TOKENIZER,
        "template": "qwen_chat",
        "max_length": 64,
        "part_rows": 50,
        "tokenizer_engine": "hf",
    }
    for name, value in (defaults | options).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, *more]
