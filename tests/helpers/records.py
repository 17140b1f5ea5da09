"""Raw records, pictures and whole packs for tests, through the public API."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from shardkit import pack
from shardkit.builder import Progress
from shardkit.format.manifest import Manifest

TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "tokenizer"
_WORDS = ("river lamp window garden paper stone letter cloud bridge song train glass").split()  # noqa: SIM905


def alpaca_rows(n: int, *, seed: int = 0, n_bad: int = 0) -> list[Any]:
    """n Alpaca records, of which the last of every n / n_bad cannot be used."""
    rng = random.Random(seed)
    rows: list[Any] = []
    for i in range(n):
        words = " ".join(rng.choices(_WORDS, k=rng.randrange(1, 7)))
        rows.append({"instruction": f"Task {i}: {words}", "input": "", "output": words[::-1]})
    for k in range(n_bad):
        row = (k + 1) * n // n_bad - 1
        rows[row] = [{"instruction": "no output"}, 5, {"instruction": "x", "output": "<nooutput>"}][
            k % 3
        ]
    return rows


def write_json(path: Path, rows: list[Any]) -> Path:
    """The rows as a JSON array."""
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_llava(folder: Path, n: int, *, seed: int = 0) -> Path:
    """n LLaVA rows with one, two or no picture; pictures are below folder/images."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        names = [f"{i}-{k}.{rng.choice(['jpg', 'png'])}" for k in range((1, 2, 0, 1)[i % 4])]
        for name in names:
            colour = tuple(rng.randrange(256) for _ in range(3))
            size = (rng.randrange(8, 40), rng.randrange(8, 40))
            Image.new("RGB", size, colour).save(folder / "images" / name)
        marks = "<image>" * len(names)
        words = " ".join(rng.choices(_WORDS, k=rng.randrange(1, 7)))
        turns = [{"from": "human", "value": f"{marks}\nWhat is {words}?"}]
        turns.append({"from": "gpt", "value": words})
        row: dict[str, Any] = {"id": f"row-{i}", "conversations": turns}
        if names:
            row["image"] = names if len(names) > 1 else names[0]
        rows.append(row)
    return write_json(folder / "llava.json", rows)


def pack_small(
    source: Path | str | Sequence[Path | str], out: Path | str, **options: Any
) -> Manifest:
    """Pack with the small tokenizer; many parts."""
    defaults = {
        "tokenizer": TOKENIZER,
        "template": "qwen_chat",
        "max_length": 64,
        "part_rows": 50,
        "engine": "hf",
    }
    manifest = pack(source, out, **{**defaults, **options})
    assert manifest is not None
    return manifest


def alpaca_dataset(folder: Path, n: int, **options: Any) -> Path:
    """A dataset of n Alpaca rows below a folder, the small tokenizer's; where it is."""
    source = write_json(folder / "rows.json", alpaca_rows(n))
    defaults = {"tokenizer": TOKENIZER, "template": "qwen_chat", "max_length": 64}
    pack(source, folder / "out", **{**defaults, **options})
    return folder / "out"


def stop_after(n_rows: int) -> Callable[[Progress], None]:
    """An `on_progress` that interrupts the build, as Ctrl-C does, when so many rows are built."""

    def stop(progress: Progress) -> None:
        if progress.stage == "build" and progress.n_done >= n_rows:
            raise KeyboardInterrupt

    return stop


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
