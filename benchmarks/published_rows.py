"""What becomes of published files: one line each, what was kept, rejected and read by nobody.

    python benchmarks/published_rows.py FILE ... --tokenizer DIR [--template T] [--image-root DIR]

Each file is packed by itself into a scratch folder. Rows of pairs and of labelled answers are
packed again with `--task preference` and `--task kto`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from shardkit import pack
from shardkit.errors import ShardkitError
from shardkit.format.manifest import Manifest
from shardkit.format.recipe import KTO, PREFERENCE, SFT, Task
from shardkit.tokens import load_tokenizer

_SHOWN = 110


def main() -> None:
    """Pack the files, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--template", default="tokenizer")
    parser.add_argument("--image-root", type=Path)
    parser.add_argument("--history", default="reject")
    args = parser.parse_args()
    options: dict[str, Any] = {"template": args.template, "history": args.history}
    options["tokenizer"] = load_tokenizer(args.tokenizer)
    if args.image_root is not None:
        options |= {"image_root": args.image_root, "image_tokens": 4}
    print(f"{'file':44}{'task':12}{'rows':>7}{'kept':>7}{'rejected':>10}")
    for path in args.files:
        for task in _tasks(path):
            with tempfile.TemporaryDirectory() as folder:
                _tell(path, task, Path(folder) / "out", options)


def _tasks(path: Path) -> list[Task]:
    """The tasks that the rows of a file may be for."""
    text = path.read_text()
    found: list[Task] = [SFT]
    if '"chosen' in text:
        found.append(PREFERENCE)
    if '"label"' in text or '"kto_tag"' in text:
        found.append(KTO)
    return found


def _tell(path: Path, task: Task, out: Path, options: dict[str, Any]) -> None:
    try:
        more = {} if task == SFT else {"task": task, "history": "reject"}
        manifest = pack(path, out, max_rejects=None, **options | more)
    except ShardkitError as error:
        print(f"{path.name:44}{task:12}refused: {str(error)[: 2 * _SHOWN]}")
        return
    assert manifest is not None
    n_rejected = sum(sum(one.rejected.values()) for one in manifest.sources)
    n_rows = sum(one.n_rows for one in manifest.sources)
    print(f"{path.name:44}{task:12}{n_rows:7}{n_rows - n_rejected:7}{n_rejected:10}")
    _tell_rejects(out / "rejects.jsonl")
    _tell_unread(manifest)


def _tell_rejects(path: Path) -> None:
    """How many rows of each reason, with the first one's detail."""
    counts, firsts = Counter[str](), dict[str, str]()
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        counts[row["reason"]] += 1
        firsts.setdefault(row["reason"], row.get("detail") or "")
    for reason, n in counts.most_common():
        print(f"{'':8}{n:5} {reason}: {firsts[reason][:_SHOWN]}")


def _tell_unread(manifest: Manifest) -> None:
    fields = manifest.checks.get("unread_fields", {}).get("fields", {})
    keys = {key: n for found in fields.values() for key, n in found.items()}
    if keys:
        print(f"{'':14}unread: " + ", ".join(f"{key} {n}" for key, n in keys.items()))


if __name__ == "__main__":
    main()
