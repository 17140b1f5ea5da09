"""Packing and loading pictures with a processor, beside the same processor in a DataLoader.

    python benchmarks/vision.py ROWS.json IMAGES [--family qwen2_5_vl] [--pictures 500]

ROWS.json are LLaVA rows, IMAGES the folder of their pictures. Rates in pictures a second, taken in
turns; the rival decodes, resizes and tokenises each row by the whole processor, in as many
processes as this machine has processors, collated one row a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from processors import CLASSES, build

from shardkit import ShardLoader, pack
from shardkit.processors import VisionProcessor, load_processor


class Rows(Dataset[dict[str, Any]]):
    """Each row by the whole processor: what a training script does without shardkit."""

    def __init__(self, rows: list[dict[str, Any]], images: Path, processor: VisionProcessor):
        self.rows, self.images, self.processor = rows, images, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        picture = Image.open(self.images / row["image"]).convert("RGB")
        turns = row["conversations"]
        text = turns[0]["value"].replace("<image>", "")
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},
            {"role": "assistant", "content": turns[1]["value"]},
        ]
        real = self.processor.real
        rendered = real.apply_chat_template(messages, tokenize=False)
        found: dict[str, Any] = real(text=[rendered], images=[[picture]], return_tensors="pt")
        return found


def first(batch: list[Any]) -> Any:
    """A batch of one row is that row."""
    return batch[0]


def rate(batches: Iterable[Any], n: int) -> float:
    """Pictures a second."""
    began = time.perf_counter()
    for _ in batches:
        pass
    return n / (time.perf_counter() - began)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--family", default="qwen2_5_vl", choices=sorted(CLASSES))
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in json.loads(args.rows.read_text()) if isinstance(row.get("image"), str)]
    rows = [row for row in rows if (args.images / row["image"]).is_file()][: args.pictures]
    n, workers = len(rows), len(os.sched_getaffinity(0))
    results: dict[str, list[float]] = {"processor in a DataLoader": [], "pack": [], "load": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(args.family).save_pretrained(folder / "processor")
        processor = load_processor(folder / "processor")
        (folder / "rows.json").write_text(json.dumps(rows))
        rival = Rows(rows, args.images, processor)
        for _ in range(args.rounds):
            plain = DataLoader(rival, batch_size=1, num_workers=workers, collate_fn=first)
            results["processor in a DataLoader"].append(rate(plain, n))
            began = time.perf_counter()
            pack(
                folder / "rows.json",
                folder / "data",
                processor=processor,
                image_root=args.images,
                overwrite=True,
                workers=workers,
                part_rows=max(1, n // (2 * workers)),
            )
            results["pack"].append(n / (time.perf_counter() - began))
            loader = ShardLoader(folder / "data", 1, processor=processor, shuffle=False)
            results["load"].append(rate(loader, n))
    print(f"{args.family}, {n} pictures, {workers} processors, pictures a second (median)")
    for label, found in results.items():
        print(f"{label:30} {median(found):8.1f}   {[round(one, 1) for one in found]}")


if __name__ == "__main__":
    main()
