"""What `pack --store-max-pixels N` saves, and what it changes.

    python benchmarks/stored_pixels.py ROWS.json IMAGES [--max-pixels 100352 ...] [--pictures 300]

ROWS.json are LLaVA rows, IMAGES the folder of their pictures. For each N the rows are packed with
Qwen2.5-VL's processor whose own max_pixels is N, and stored as they are and at most N large: bytes
of the shards, processor time, image tokens, and how far the pixels of pictures that are made
smaller are from those of the whole pictures (grey levels, of pictures that are as many tokens).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from vision import real_size

from shardkit import pack
from shardkit.dataset import open_dataset
from shardkit.images import decode_rgb
from shardkit.processors import VisionProcessor, load_processor

Stored = dict[str, tuple[int, bytes]]
"""(image tokens, encoded bytes) of each picture that is stored, by its name."""


def packed(rows: Path, out: Path, images: Path, **options: Any) -> tuple[float, int, Stored]:
    """Processor seconds, bytes of all shards, and the pictures."""
    began = time.process_time()
    pack(rows, out, image_root=images, workers=1, **options)
    took = time.process_time() - began
    dataset, found = open_dataset(out), Stored()
    for number in range(len(dataset.manifest.shards)):
        shard = dataset.open_shard(number)
        for row in range(shard.n_samples):
            meta = shard.meta(row)
            for about, data in zip(meta.images if meta else (), shard.images(row), strict=True):
                found[about.name] = (about.tokens or 0, bytes(data))
    return took, sum(path.stat().st_size for path in out.glob("shard-*")), found


def levels(processor: VisionProcessor, one: bytes, other: bytes) -> np.ndarray[Any, Any] | None:
    """How far the pixels of two pictures are apart, in grey levels; None for other shapes."""
    every = [processor.arrays([decode_rgb(data)])[0] for data in (one, other)]
    ours, theirs = (found["pixel_values"] for found in every)
    if ours.shape != theirs.shape:
        return None
    std = min(processor.real.image_processor.image_std)
    return np.abs(ours - theirs) * 255 * std


def main() -> None:
    """Measure; print a line for each N."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--max-pixels", type=int, nargs="*", default=[100_352, 50_176])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--compared", type=int, default=40, help="pictures whose pixels are")
    args = parser.parse_args()
    rows = [row for row in json.loads(args.rows.read_text()) if isinstance(row.get("image"), str)]
    rows = [row for row in rows if (args.images / row["image"]).is_file()][: args.pictures]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "rows.json"
        source.write_text(json.dumps(rows))
        real_size("qwen2_5_vl").save_pretrained(folder / "processor")
        for limit in args.max_pixels:
            options = {"processor": folder / "processor", "max_pixels": limit}
            processor = load_processor(folder / "processor", arguments={"max_pixels": limit})
            whole = packed(source, folder / f"{limit}-whole", args.images, **options)
            options["store_max_pixels"] = limit
            small = packed(source, folder / f"{limit}-small", args.images, **options)
            report(limit, len(rows), whole, small, processor, args.compared)


def report(
    limit: int,
    n: int,
    whole: tuple[float, int, Stored],
    small: tuple[float, int, Stored],
    processor: VisionProcessor,
    n_compared: int,
) -> None:
    """Print what one N makes of the pictures."""
    changed = [name for name, (_, data) in whole[2].items() if small[2][name][1] != data]
    apart = [
        levels(processor, whole[2][name][1], small[2][name][1]) for name in changed[:n_compared]
    ]
    values = np.concatenate([one.ravel() for one in apart if one is not None] or [np.zeros(1)])
    tokens = [sum(count for count, _ in stored.values()) for *_, stored in (whole, small)]
    print(
        f"{limit} pixels: {len(changed)} of {n} pictures smaller; "
        f"{whole[1] / 1e6:.2f} MB become {small[1] / 1e6:.2f} MB; "
        f"{whole[0] / n * 1e3:.2f} and {small[0] / n * 1e3:.2f} CPU ms a picture "
        f"({whole[1] / 1e6 / whole[0]:.1f} and {whole[1] / 1e6 / small[0]:.1f} MB/s read); "
        f"{tokens[0]} and {tokens[1]} image tokens; pixels of {len(apart)} differ by "
        f"{values.mean():.2f} levels on average, {np.quantile(values, 0.99):.0f} at 99 %",
        flush=True,
    )


if __name__ == "__main__":
    main()
