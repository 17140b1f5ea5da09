"""Packing and loading pictures with a processor, beside the same processor in a DataLoader.

    python benchmarks/vision.py ROWS.json IMAGES [--family qwen2_5_vl ...] [--pictures 300] [--json]

ROWS.json are LLaVA rows, IMAGES the folder of their pictures. Processors have the sizes of their
classes' defaults. The rival decodes, resizes and tokenises each row by the whole processor, in as
many processes as this machine has processors, one row a batch. Contenders take turns, each round
of each in a process of its own, forked from one that has loaded the processor; medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import load, machine
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from processors import BUILDERS, HAS_TORCHVISION, image_processor

from shardkit import ShardLoader, pack
from shardkit.processors import VisionProcessor, load_processor

REAL_SIZES: dict[str, dict[str, Any]] = {
    "internvl": {
        "crop_to_patches": True,
        "max_patches": 12,
        "size": {"height": 448, "width": 448},
    },
    "llava": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
}
"""What differs from the defaults of the image processor's class."""
N_TOKENS = {"internvl": {"image_seq_length": 256}}


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


def real_size(name: str) -> Any:
    """The processor of a family of helpers/processors.py, with its class's own sizes."""
    made = BUILDERS[name]()
    cls = type(made.image_processor).__name__.removesuffix("Pil")
    made.image_processor = image_processor(cls, **REAL_SIZES.get(name, {}))
    for attribute, value in N_TOKENS.get(name, {}).items():
        setattr(made, attribute, value)
    return made


def bytes_of(batches: Iterable[Any]) -> int:
    """Read all batches; the bytes of the largest."""
    return max(
        sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
        for batch in batches
    )


def measured(work: Callable[[], int], n: int) -> dict[str, float]:
    """The work once in a forked process: rate, processor time, memory beyond what was there."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(work, n, theirs))
    child.start()
    theirs.close()
    found: dict[str, float] = ours.recv()
    child.join()
    return found


def _child(work: Callable[[], int], n: int, sender: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
    before, began = _status("VmRSS"), time.perf_counter()
    cpu = _cpu()
    largest = work()
    took = time.perf_counter() - began
    sender.send(
        {
            "pictures_per_s": n / took,
            "cpu_ms_per_picture": (_cpu() - cpu) / n * 1e3,
            "largest_batch_mb": largest / 1e6,
            "peak_mb_beyond_start": (_status("VmHWM") - before) / 1e3,
        }
    )


def _cpu() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def contenders(
    folder: Path, rows: list[dict[str, Any]], images: Path, family: str, batch_size: int
) -> dict[str, Callable[[], int]]:
    """What is measured, by name."""
    n_cores = len(os.sched_getaffinity(0))
    real_size(family).save_pretrained(folder / family)
    processor = load_processor(folder / family)
    processor.real.tokenizer("warm")
    source, data = folder / "rows.json", folder / f"{family}-data"
    source.write_text(json.dumps(rows))

    def packing(workers: int) -> int:
        out = folder / "packed"
        shutil.rmtree(out, ignore_errors=True)
        pack(
            source,
            out,
            processor=folder / family,
            image_root=images,
            workers=workers,
            part_rows=max(1, len(rows) // (2 * workers)),
        )
        return 0

    def loading(**options: Any) -> int:
        options = {"shuffle": False, "drop_last": False, "processor": processor, **options}
        return bytes_of(ShardLoader(data, batch_size, **options))

    def plain() -> int:
        options: dict[str, Any] = {"num_workers": n_cores, "collate_fn": first}
        return bytes_of(DataLoader(Rows(rows, images, processor), batch_size=1, **options))

    packing(1)
    (folder / "packed").rename(data)
    return {
        f"the processor in a DataLoader, {n_cores} workers": plain,
        f"load, {n_cores} threads": loading,
        f"load, {n_cores} workers": partial(loading, num_workers=n_cores),
        f"load, fast_pixels, {n_cores} threads": partial(loading, fast_pixels=True),
        f"load, fast_pixels, {n_cores} workers": partial(
            loading, fast_pixels=True, num_workers=n_cores
        ),
        "pack, 1 worker": partial(packing, 1),
        f"pack, {n_cores} workers": partial(packing, n_cores),
    }


def main() -> None:
    """Measure; print a table, or JSON for report.py."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--family", nargs="*", default=["qwen2_5_vl"], choices=sorted(BUILDERS))
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in json.loads(args.rows.read_text()) if isinstance(row.get("image"), str)]
    rows = [row for row in rows if (args.images / row["image"]).is_file()][: args.pictures]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        every = {
            family: contenders(Path(name), rows, args.images, family, args.batch_size)
            for family in args.family
        }
        for _ in range(args.rounds):
            loads.append(load())
            for family, group in every.items():
                for label, work in group.items():
                    found.setdefault((label, family), []).append(measured(work, len(rows)))
    table = [
        {
            "contender": label,
            "case": family,
            "metrics": {key: median(one[key] for one in runs) for key in runs[0]},
        }
        for (label, family), runs in found.items()
    ]
    versions = {"torchvision": "used" if HAS_TORCHVISION else "absent"}
    if args.json:
        report = {"benchmark": "vision", "machine": machine(loads, versions), "rows": table}
        print(json.dumps(report))
        return
    for row in table:
        figures = "  ".join(f"{key} {value:8.2f}" for key, value in row["metrics"].items())
        print(f"{row['case']:12} {row['contender']:44} {figures}")


if __name__ == "__main__":
    main()
