"""Real rows and pictures through every family of processors, compared with the processors.

    python benchmarks/families.py SHARED [--family qwen2_5_vl ...] [--rows 200]

SHARED holds llava/*.json and images/. The rows: LLaVA's with one picture, several in one turn and
in later turns, and none. Each processor is built small, over a real tokenizer, saved, and loaded
as a user's. What is compared, for every row: the ids with those of `apply_chat_template` on the
same messages (pictures loaded by transformers), and every array of the loader's batch, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
import processors

from shardkit import ShardLoader, pack
from shardkit.processors import VisionProcessor, load_processor

MARK = "<image>"
WRONG = ("differ", "missing", "rejected")
Row = dict[str, Any]


def rows_of(shared: Path, n: int) -> list[Row]:
    """n rows: one of ten has no picture, two of ten have several."""
    read = {path.name: json.loads(path.read_text()) for path in (shared / "llava").glob("*.json")}
    few = [
        {**row, "image": _below("lmms_finetune", row["image"])} if row.get("image") else row
        for name in sorted(read)
        if name.startswith("lmms")
        for row in read[name]
    ]
    plain = [
        {**row, "image": _below("llava_pretrain", row["image"])}
        for row in read["blip_laion_cc_sbu_1k.json"]
    ]
    words = [_without_picture(row) for row in read["lf_llava_instruct_100.json"]]
    made: list[Row] = []
    pictures = cycle(plain)  # a thousand rows have more pictures than the files
    for i in range(n - len(few)):
        if i % 10 == 3:
            made.append(words[i // 10])
        elif i % 10 == 5:
            made.append(_turn_after_turn(next(pictures), next(pictures)))
        elif i % 10 == 8:
            made.append(_in_one_turn([next(pictures) for _ in range(2 + i % 3)]))
        else:
            made.append(next(pictures))
    return few[:n] + made


def _below(folder: str, name: str | list[str]) -> str | list[str]:
    return f"{folder}/{name}" if isinstance(name, str) else [f"{folder}/{one}" for one in name]


def _without_picture(row: Row) -> Row:
    turns = [{**t, "value": t["value"].replace(MARK, "").strip()} for t in row["conversations"]]
    return {"id": row["id"], "conversations": turns}


def _turn_after_turn(one: Row, other: Row) -> Row:
    return {
        "image": [one["image"], other["image"]],
        "conversations": one["conversations"] + other["conversations"],
    }


def _in_one_turn(rows: list[Row]) -> Row:
    question = " and ".join([MARK] * len(rows)) + "\nWhat do they show, in order?"
    answer = "; ".join(row["conversations"][1]["value"] for row in rows)
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": [row["image"] for row in rows], "conversations": turns}


def messages_of(row: Row, images: Path) -> list[dict[str, Any]]:
    """The row as `apply_chat_template` takes it: parts where the marks stand.

    LLaVA's own rule: a turn with one picture has it in front, on a line of its own.
    """
    names = row.get("image") or []
    waiting = iter([names] if isinstance(names, str) else names)
    found: list[dict[str, Any]] = []
    if row.get("system_prompt"):
        found.append({"role": "system", "content": _text(row["system_prompt"])})
    for turn in row["conversations"]:
        text, role = turn["value"], {"human": "user", "gpt": "assistant"}[turn["from"]]
        if role == "user" and names and text.count(MARK) == 1:
            text = f"{MARK}\n{text.replace(MARK, '').strip()}".strip()
        parts: list[dict[str, Any]] = []
        for k, words in enumerate(text.split(MARK)):
            parts += [{"type": "image", "image": _loaded(images / next(waiting))}] if k else []
            parts += _text(words) if words else []
        found.append({"role": role, "content": parts})
    return found


def _loaded(path: Path) -> Any:
    """As transformers loads a path; with torchvision it may decode by that, where it can."""
    from transformers.image_utils import load_image

    return load_image(str(path))


def _text(words: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": words}]


def by_processor(real: Any, row: Row, images: Path) -> dict[str, Any]:
    """What the whole processor makes of a row."""
    from transformers import ProcessorMixin

    apply: Any = ProcessorMixin.apply_chat_template  # SmolVLM's own asks its video processor
    messages = messages_of(row, images)
    found = apply(real, messages, tokenize=True, return_dict=True, return_tensors="np")
    return {key: np.asarray(value) for key, value in found.items()}


def compare(name: str, rows: list[Row], images: Path, folder: Path) -> Counter[str]:
    """Pack and load the rows by one family; counts of what was compared, and of what differed."""
    processors.BUILDERS[name]().save_pretrained(folder / name)
    processor = load_processor(folder / name)
    (folder / "rows.json").write_text(json.dumps(rows))
    out = folder / f"{name}-data"
    pack(folder / "rows.json", out, processor=folder / name, image_root=images, max_length=8192)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    lost = {reject["row"] for reject in rejects}
    count = Counter(rows=len(rows), rejected=len(lost))
    for reject in rejects[:3]:
        print(f"  rejected: {reject}")
    kept = [i for i in range(len(rows)) if i not in lost]
    loader = ShardLoader(out, 1, processor=folder / name, shuffle=False, drop_last=False)
    for row, batch in zip(kept, loader, strict=True):
        found = loader.model_inputs(batch)
        count.update(_compare(processor, rows[row], images, found, f"row {row}"))
    return count


def _compare(
    processor: VisionProcessor, row: Row, images: Path, found: dict[str, Any], where: str
) -> Counter[str]:
    expected = by_processor(processor.real, row, images)
    names = row.get("image") or []
    n_pictures = 1 if isinstance(names, str) else len(names)
    count: Counter[str] = Counter(pictures=n_pictures)
    count["rows with several"] = n_pictures > 1
    count["rows with none"] = n_pictures == 0
    missing = set(expected) - set(found)
    for key in expected.keys() & found.keys():
        ours, theirs = found[key].numpy(), expected[key]
        kind = "ids" if key == "input_ids" else "pixels" if key.startswith("pixel") else "others"
        count[f"{kind} compared"] += 1
        if ours.dtype.kind != theirs.dtype.kind or not np.array_equal(ours, theirs):
            count[f"{kind} differ"] += 1
            print(f"  {where}: {key} {ours.shape} {ours.dtype}, expected {theirs.shape}")
    if missing:
        count["keys missing"] += 1
        print(f"  {where}: no {sorted(missing)}")
    return count


def main() -> None:
    """Compare and print a line for each family; ends with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--family", nargs="*", default=list(processors.BUILDERS))
    parser.add_argument("--rows", type=int, default=200)
    args = parser.parse_args()
    processors.TOKENIZER = args.shared / "tokenizers" / "qwen2_5"
    rows = rows_of(args.shared, args.rows)
    differs = False
    with tempfile.TemporaryDirectory() as folder:
        for name in args.family:
            began = time.process_time()
            try:
                count = compare(name, rows, args.shared / "images", Path(folder))
            except ImportError as error:
                print(f"{name}: left out, {' '.join(str(error).split())[:80]}", flush=True)
                continue
            text = ", ".join(f"{n} {what}" for what, n in count.items())
            print(f"{name}: {text} ({time.process_time() - began:.0f} CPU s)", flush=True)
            differs |= any(count[what] for what in count if what.split()[-1] in WRONG)
    sys.exit(differs)


if __name__ == "__main__":
    main()
