"""What two keys that nobody reads cost a pack, whole, in pairs of runs.

    python benchmarks/unread_keys.py FILE.json --tokenizer DIR [--rows 20000] [--repeats 5]

FILE holds Alpaca rows; they are written as Alpaca, as ShareGPT and as messages of one exchange,
each without and with two more keys in every row. The two files are packed in turn, in this
process; `ratio` is the median of CPU seconds with the keys over those without, `is_fast` whether
every row took the way of plain rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from field_ledger import load_rows
from machine import load, machine

from shardkit import pack
from shardkit.sources.source_format import SourceFormat
from shardkit.tokens import Tokenizer, load_tokenizer


def shapes(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows in three published shapes."""
    pairs = [(f"{row['instruction']}\n{row['input']}", row["output"]) for row in rows]
    return {
        "alpaca": rows,
        "sharegpt": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
            for q, a in pairs
        ],
        "messages": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in pairs
        ],
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def seconds(path: Path, out: Path, tokenizer: Tokenizer) -> float:
    """CPU seconds of one pack."""
    shutil.rmtree(out, ignore_errors=True)
    begun = time.process_time()
    pack(path, out, tokenizer=tokenizer, template="qwen_chat", max_length=2048, workers=1)
    return time.process_time() - begun


def slow_rows(run: Callable[[], object]) -> int:
    """How many rows were read one by one."""
    n_slow, read = 0, SourceFormat.read

    def counted(self: SourceFormat, *args: Any) -> Any:
        nonlocal n_slow
        n_slow += 1
        return read(self, *args)

    SourceFormat.read = counted  # type: ignore[method-assign]
    try:
        run()
    finally:
        SourceFormat.read = read  # type: ignore[method-assign]
    return n_slow


def main() -> None:
    """Write the files, pack them in turn, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    tokenizer, loads, lines = load_tokenizer(args.tokenizer), [load()], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape, rows in shapes(load_rows(args.file, args.rows)).items():
            more = [row | {"origin": "x", "rank": i} for i, row in enumerate(rows)]
            files = [
                write(folder / f"{shape}-{k}.jsonl", some) for k, some in enumerate((rows, more))
            ]
            # the first rows of a file are read one by one, to choose its format
            n_slow = [slow_rows(lambda p=p: seconds(p, folder / "out", tokenizer)) for p in files]
            runs = [
                [seconds(path, folder / "out", tokenizer) for path in files]
                for _ in range(args.repeats)
            ]
            ratios = sorted(with_keys / without for without, with_keys in runs)
            lines.append(
                {
                    "rows": shape,
                    "ratio": round(statistics.median(ratios), 4),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                    "seconds": [round(min(found), 3) for found in zip(*runs, strict=True)],
                    "is_fast": [n < len(rows) / 10 for n in n_slow],
                }
            )
            loads.append(load())
    found = {"benchmark": "unread keys", "machine": machine(loads), "rows": lines}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
