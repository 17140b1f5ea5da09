"""What does `shardkit repack` save against packing anew, and how full are its packs?

    python benchmarks/repack.py ROWS.json TOKENIZER [--lengths 2048 4096 8192] [--image-root DIR]

Times are interleaved and the best of --rounds; fill is tokens over packs times length, in per
cent, for best-fit inside parts, over the whole dataset, and for `seqpacker`, where it is
installed (`pip install seqpacker`), as the yardstick.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shardkit import ShardTable
from shardkit.builder import pack, repack
from shardkit.tokens.best_fit import best_fit


def main() -> None:
    """Measure, and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-root", type=Path, help="of rows with pictures, 576 tokens each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: dict[str, Any] = {"tokenizer": args.tokenizer, "template": "qwen_chat"}
        if args.image_root is not None:
            options |= {"image_root": args.image_root, "image_tokens": 576}
        pack(args.rows, folder / "old", **options, max_length=args.lengths[0])
        lengths = ShardTable(folder / "old").lengths
        print("| max_length | repack, s | pack, s | pack with hf, s | packs | within parts |")
        print("|---|---|---|---|---|---|")
        for max_length in args.lengths:
            print(row(args, folder, options, max_length), flush=True)
        print()
        print("| max_length | fill, whole | fill, parts | seconds | seqpacker | seconds |")
        print("|---|---|---|---|---|---|")
        for max_length in (2048, 8192, 32768):
            print(fill(lengths, max_length), flush=True)


def row(args: argparse.Namespace, folder: Path, options: dict[str, Any], max_length: int) -> str:
    """A line of the table of times."""
    packs: dict[str, int] = {}

    def run(name: str, do: Callable[[Path], int]) -> float:
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        packs[name] = do(out)
        return time.perf_counter() - began

    def anew(engine: str) -> Callable[[Path], int]:
        def do(out: Path) -> int:
            made = pack(
                args.rows, out, **options, max_length=max_length, packing="best-fit", engine=engine
            )
            return made.n_samples if made else 0

        return do

    def again(out: Path) -> int:
        made = repack(
            folder / "old", out, max_length=max_length, packing="best-fit", truncated="keep"
        )
        return made.n_samples

    doings = {"repack": again, "auto": anew("auto"), "hf": anew("hf")}
    times: dict[str, list[float]] = {name: [] for name in doings}
    for _ in range(args.rounds):
        for name, do in doings.items():
            times[name].append(run(name, do))
    best = " | ".join(f"{min(times[name]):.2f}" for name in doings)
    return f"| {max_length} | {best} | {packs['repack']} | {packs['auto']} |"


def fill(lengths: np.ndarray, max_length: int) -> str:
    """A line of the table of fill."""
    lengths = np.minimum(lengths, max_length)

    def percent(n_packs: int) -> str:
        return f"{100 * lengths.sum() / n_packs / max_length:.2f} %"

    began = time.perf_counter()
    whole = int(best_fit(lengths, max_length).max()) + 1
    took = time.perf_counter() - began
    parts = [lengths[i : i + 8192] for i in range(0, len(lengths), 8192)]
    in_parts = sum(int(best_fit(part, max_length).max()) + 1 for part in parts)
    cells = [f"{max_length}", percent(whole), percent(in_parts), f"{took:.3f}"]
    if importlib.util.find_spec("seqpacker") is None:
        return "| " + " | ".join([*cells, "not installed", ""]) + " |"
    seqpacker = importlib.import_module("seqpacker")
    began = time.perf_counter()
    result = seqpacker.Packer(capacity=max_length, strategy="obfd").pack(lengths.tolist())
    took = time.perf_counter() - began
    return "| " + " | ".join([*cells, percent(len(result.bins)), f"{took:.3f}"]) + " |"


if __name__ == "__main__":
    main()
