"""Images a second: packing and loading, against Pillow alone and transformers' processor.

    python benchmarks/images.py [--json] [--rounds N] [--images N] [--data llava.json --root DIR]

Candidates are interleaved in every round, one process for all; medians; the load of the machine
is printed. Without --data, pictures are generated.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image

from shardkit import ShardLoader, pack
from shardkit.images import ImageTransform, decode

TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "data" / "tokenizer"
SIZE = 336


def generate(folder: Path, n: int) -> Path:
    """n noisy pictures of 640 x 480 and a LLaVA file that names them."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = []
    for i in range(n):
        small = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(small).resize((640, 480)).save(folder / "images" / f"{i}.jpg", quality=90)
        turns = [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": f"It is {i}."},
        ]
        rows.append({"image": f"{i}.jpg", "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(rows))
    return folder / "llava.json"


def candidates(
    source: Path, root: Path, folder: Path, n_workers: tuple[int, ...]
) -> tuple[dict[str, Callable[[], int]], dict[str, str]]:
    """What is measured, by name; each call returns how many images it handled."""
    from transformers import CLIPImageProcessor

    options = {
        "tokenizer": TOKENIZER, "template": "qwen_chat", "max_length": 2048,
        "image_root": root, "image_tokens": 576, "part_rows": 128,
    }  # fmt: skip
    manifest = pack(source, folder / "data", **options)
    assert manifest is not None
    files = [root / row["image"] for row in json.loads(source.read_text()) if row.get("image")]
    encoded = [path.read_bytes() for path in files]
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    counter = iter(range(10**9))

    def pillow_decode() -> int:
        for data in encoded:
            Image.open(io.BytesIO(data)).convert("RGB").load()
        return len(encoded)

    def pillow_resize() -> int:
        for data in encoded:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            short = min(image.size)
            new = tuple(int(SIZE * edge / short) for edge in image.size)
            np.asarray(image.resize(new, Image.Resampling.BICUBIC))
        return len(encoded)

    def hf_rows() -> int:
        for data in encoded:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            processor(images=image, return_tensors="np")["pixel_values"]
        return len(encoded)

    def our_decode() -> int:
        for data in encoded:
            decode(data)
        return len(encoded)

    def our_transform() -> int:
        transform = ImageTransform(SIZE)
        for data in encoded:
            transform([data])
        return len(encoded)

    def packing(workers: int) -> Callable[[], int]:
        def run() -> int:
            out = folder / f"pack-{next(counter)}"
            made = pack(source, out, workers=workers, **options)
            assert made is not None
            return made.n_images

        return run

    def loading(**more: object) -> Callable[[], int]:
        def run() -> int:
            loader = ShardLoader(
                folder / "data", 8, drop_last=False, image_transform=ImageTransform(SIZE),
                rank=0, world_size=1, **more,
            )  # fmt: skip
            return sum(len(batch["pixel_values"]) for batch in loader)

        return run

    found = {
        "Pillow: decode": pillow_decode,
        "Pillow: decode, resize": pillow_resize,
        "transformers processor, row by row": hf_rows,
        "shardkit: decode (packing checks)": our_decode,
        "shardkit: ImageTransform, one thread": our_transform,
        "shardkit: ShardLoader, threads": loading(),
        "shardkit: ShardLoader, 1 thread": loading(image_threads=1),
    }
    for n in n_workers:
        found[f"shardkit: ShardLoader, {n} workers"] = loading(num_workers=n)
    found["shardkit: pack, 1 process"] = packing(1)
    for n in n_workers:
        found[f"shardkit: pack, {n} processes"] = packing(n)
    return found, {"images": str(len(encoded)), "bytes": str(sum(map(len, encoded)))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n = 8 if args.quick else args.images
        source = args.data or generate(folder, n)
        root = args.root or folder / "images"
        workers = () if args.quick else (2,)
        found, about = candidates(source, root, folder, workers)
        rates: dict[str, list[float]] = {label: [] for label in found}
        loads = []
        for _ in range(1 if args.quick else args.rounds):
            loads.append(os.getloadavg()[0])
            for label, run in found.items():
                begun = time.perf_counter()
                n_images = run()
                rates[label].append(n_images / (time.perf_counter() - begun))
    medians = {label: statistics.median(values) for label, values in rates.items()}
    base = medians["transformers processor, row by row"]
    if args.json:
        rows = [
            {
                "contender": label,
                "case": f"{about['images']} images",
                "metrics": {"images_per_s": rate, "times_the_processor": rate / base},
            }
            for label, rate in medians.items()
        ]
        print(json.dumps({"benchmark": "images", "machine": machine(loads), "rows": rows}))
        return
    print(f"{about['images']} images, {int(about['bytes']) / 1e6:.1f} MB; load {loads}")
    for label, rate in medians.items():
        print(f"{label:40s} {rate:8.0f} images/s   {rate / base:5.2f} x the processor")


if __name__ == "__main__":
    main()
