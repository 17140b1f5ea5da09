"""What reading rows costs, and the share of a pack that the field ledger takes.

    python benchmarks/field_ledger.py FILE.json --tokenizer DIR [--template NAME] [--rows 12000]

FILE is a JSON array or JSONL, Alpaca's for instance. `us_a_row` is the least CPU time of reading
alone: of the file, of it with two keys that nobody reads in every row, and of chats. Then the file
is packed, and the same with the ledger switched off in this process, in turn: `share` is what the
ledger takes of the reading of a row, over what a pack takes of it; `pack_on` and `pack_off` are the
least CPU seconds of whole packs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import load, machine

from shardkit import pack
from shardkit.sources import SOURCES, ReadOptions, SourceScan, Unread, detect, scan
from shardkit.sources.plain_rows import PlainRows
from shardkit.sources.record import Record
from shardkit.tokens import Tokenizer, load_tokenizer

BATCH = 2048
WORDS = "lorem ipsum dolor sit amet consetetur sadipscing elitr sed diam"


@contextmanager
def without_ledger() -> Iterator[None]:
    """No key is counted, and none is refused."""
    kept = (Record.count_unread, PlainRows.count_extra, PlainRows.exchanges)
    Record.count_unread = lambda self, unread: None  # type: ignore[method-assign]
    PlainRows.count_extra = lambda self, rows, unread: None  # type: ignore[method-assign]
    PlainRows.exchanges = lambda self, rows: list(map(self.exchange, rows))  # type: ignore[method-assign]
    try:
        yield
    finally:
        Record.count_unread, PlainRows.count_extra, PlainRows.exchanges = kept  # type: ignore[method-assign]


def least(run: Callable[[], object], repeats: int) -> float:
    """The least CPU seconds of a call in this process."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times)


def reading(path: Path, spool: Path) -> Callable[[], None]:
    """Read all rows of a file."""
    found: SourceScan = scan(path, name=path.name, spool=spool)
    with path.open() as lines:
        kind, _ = detect([json.loads(next(lines))], path.name)

    def run() -> None:
        for first in range(0, found.n_rows, BATCH):
            rows = np.arange(first, min(first + BATCH, found.n_rows))
            SOURCES[kind].read_rows(found, rows, ReadOptions(), Unread())

    return run


def chat(n_turns: int) -> dict[str, Any]:
    """A chat of so many short turns."""
    who = ("human", "gpt")
    return {
        "conversations": [{"from": who[i % 2], "value": f"{WORDS} {i}"} for i in range(n_turns)]
    }


def load_rows(path: Path, n: int) -> list[dict[str, Any]]:
    """The first rows of an array or of lines."""
    text = path.read_text()
    if text.lstrip().startswith("["):
        found: list[dict[str, Any]] = json.loads(text)[:n]
        return found
    return [json.loads(line) for line in text.splitlines()[:n]]


def main() -> None:
    """Write the files, read and pack them, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--template", default="qwen_chat")
    parser.add_argument("--rows", type=int, default=12000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = load_rows(args.file, args.rows)
    sets = {
        "file": rows,
        "file, two unread keys": [row | {"origin": "x", "rank": i} for i, row in enumerate(rows)],
        "chats of 2 turns": [chat(2)] * len(rows),
        "chats of 8 turns": [chat(8)] * len(rows),
    }
    tokenizer = load_tokenizer(args.tokenizer)
    out: list[dict[str, Any]] = []
    loads = [load()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (title, some) in enumerate(sets.items()):
            path = folder / f"{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in some))
            run = reading(path, folder / f"spool-{number}")
            on = least(run, args.repeats)
            with without_ledger():
                off = least(run, args.repeats)
            line: dict[str, Any] = {"rows": title, "us_a_row": round(1e6 * on / len(some), 2)}
            if number < 2:
                line |= packed(args, tokenizer, path, folder / "out")
                line["share"] = round((on - off) / line["pack_on"], 4)
            out.append(line)
            loads.append(load())
    print(json.dumps({"benchmark": "ledger", "machine": machine(loads), "rows": out}, indent=1))


def packed(
    args: argparse.Namespace, tokenizer: Tokenizer, path: Path, out: Path
) -> dict[str, float]:
    """The least CPU seconds of packs with the ledger and without it, taken in turn."""

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        pack(path, out, tokenizer=tokenizer, template=args.template, max_length=2048)

    run()
    on, off = [], []
    for _ in range(args.repeats):
        on.append(least(run, 1))
        with without_ledger():
            off.append(least(run, 1))
    return {"pack_on": round(min(on), 3), "pack_off": round(min(off), 3)}


if __name__ == "__main__":
    main()
