"""How does `pack` scale with workers? CPU seconds and memory of every process, not wall time alone.

    python benchmarks/scale.py ROWS.json TOKENIZER [--times 1 10] [--workers 1 2 4 8 16]

The rows are packed as they are and repeated (`--times 100` of Alpaca's 52,002 rows are 5.2
million). CPU seconds are those that the system counted, read from /proc while the pack runs; the
"parent" is what no further worker makes shorter: the caller and the processes that only load and
fork, without loading once (imports, tokenizer, engine), which a fresh process is measured at.
What 64 cores would do is computed from that: load + parent + work / 64 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from machine import load, machine

POLL_S = 0.02
_TICK = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20
CORES = 64
LOAD = """
import sys, time
from shardkit.builder.options import PackOptions
from shardkit.builder.texts import load_texts
from shardkit.builder.part import PartBuilder
from shardkit.tokens import Encoder
options = PackOptions(tokenizer=sys.argv[1], template="qwen_chat", max_length=2048)
texts = load_texts(options)
Encoder(
    texts.tokenizer, texts.template, max_length=2048, special_tokens_in_text="parse",
    image_tokens=1, image_placeholder=-200, engine="auto", pictures=None, rules=options.rules,
)
print(time.process_time())
"""


@dataclass(slots=True)
class Process:
    """What was last seen of one process."""

    role: str
    cpu: float = 0.0
    peak_rss: int = 0
    peak_pss: int = 0


@dataclass(slots=True)
class Run:
    """One pack."""

    wall: float
    total: float
    """CPU seconds of all processes, as the system adds them up at the end."""
    processes: dict[int, Process] = field(default_factory=dict)

    def cpu(self, *roles: str) -> float:
        """CPU seconds of the processes of some roles."""
        return sum(one.cpu for one in self.processes.values() if one.role in roles)

    def peak(self, what: str, *roles: str) -> float:
        """MiB of the largest process of some roles."""
        found = (getattr(p, what) for p in self.processes.values() if p.role in roles)
        return float(max(found, default=0) / _MIB)


def main() -> None:
    """Measure, and print Markdown tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--workers", nargs="+", default=["1", "2", "4", "8", "16"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--packing", default="none")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    loads, rows = [load()], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        once = median(fresh_load(args.tokenizer) for _ in range(3))
        for times in args.times:
            source, n_rows = repeated(args.rows, times, folder)
            rows += measured(args, source, n_rows, once, folder)
            source.unlink()
            loads.append(load())
    if args.json:
        print(json.dumps({"benchmark": "scale", "machine": machine(loads), "rows": rows}))
    else:
        print(table(rows))


def repeated(rows: Path, times: int, folder: Path) -> tuple[Path, int]:
    """A JSON array of the rows, so many times, and how many rows it has."""
    found = json.loads(rows.read_bytes())
    text = ",\n".join(json.dumps(row, ensure_ascii=False, indent=4) for row in found)
    path = folder / f"rows-{times}.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n")
        for i in range(times):
            file.write((",\n" if i else "") + text)
        file.write("\n]\n")
    return path, len(found) * times


def fresh_load(tokenizer: str) -> float:
    """CPU seconds in which a fresh process imports and loads all that it encodes with."""
    words = [sys.executable, "-W", "ignore", "-c", LOAD, tokenizer]
    return float(subprocess.run(words, capture_output=True, check=True).stdout)


def measured(
    args: argparse.Namespace, source: Path, n_rows: int, once: float, folder: Path
) -> list[dict[str, Any]]:
    """A row of the table for each number of workers; rounds are interleaved, medians taken."""
    runs: dict[str, list[dict[str, Any]]] = {workers: [] for workers in args.workers}
    for _ in range(args.rounds):
        for workers in args.workers:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            run = pack(source, args.tokenizer, workers, args.packing, out)
            runs[workers].append(figures(run, n_rows, once) | {"shard_of_size": shards(out)})
    rows = []
    for workers, found in runs.items():
        row = {name: median(one[name] for one in found) for name in found[0]}
        rows.append({"n_rows": n_rows, "workers": workers, **row})
    return rows


def pack(source: Path, tokenizer: str, workers: str, packing: str, out: Path) -> Run:
    """Run the command, and look at its processes while it does."""
    words = [sys.executable, "-W", "ignore", "-m", "shardkit", "pack", str(source)]
    words += ["--out", str(out), "--tokenizer", tokenizer, "--template", "qwen_chat"]
    words += ["--max-length", "2048", "--packing", packing, "--workers", workers]
    began = time.perf_counter()
    command = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: dict[int, Process] = {}
    turn = 0
    while (ended := os.wait4(command.pid, os.WNOHANG))[0] == 0:
        for pid, role in tree(command.pid):
            one = seen.setdefault(pid, Process(role))
            one.role = role if one.role == "other" else one.role  # it was just being started
            look(one, pid, with_pss=turn % 16 == 0)
        turn += 1
        time.sleep(POLL_S)
    command.returncode = os.waitstatus_to_exitcode(ended[1])
    if command.returncode:
        raise SystemExit(f"the pack failed: {' '.join(words)}")
    usage = ended[2]
    return Run(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, seen)


def tree(pid: int) -> Iterator[tuple[int, str]]:
    """The caller, the processes that it started, and the workers that those forked."""
    yield pid, "caller"
    for child in children(pid):
        is_ours = b"resource_tracker" not in command_of(child)
        yield child, "mother" if is_ours else "other"
        for worker in children(child):
            yield worker, "worker"


def children(pid: int) -> list[int]:
    """The processes that this one started."""
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(one) for task in tasks for one in (task / "children").read_text().split()]
    return []


def command_of(pid: int) -> bytes:
    """The command line of a process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def look(one: Process, pid: int, *, with_pss: bool) -> None:
    """Note what a process has used by now."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        one.cpu = max(one.cpu, (int(fields[11]) + int(fields[12])) / _TICK)
        one.peak_rss = max(one.peak_rss, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
    if with_pss:
        with suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            one.peak_pss = max(one.peak_pss, pss << 10)


def figures(run: Run, n_rows: int, once: float) -> dict[str, float]:
    """What the table has of a run, and what 64 cores would do."""
    is_alone = not run.cpu("worker")
    parent = max(0.0, run.cpu("caller", "mother") - once)
    work = run.total - once if is_alone else run.total - parent - once
    found = {
        "wall_s": run.wall,
        "cpu_s": run.total,
        "caller_s": run.cpu("caller"),
        "mothers_s": run.cpu("mother"),
        "workers_s": run.cpu("worker"),
        "load_s": once,
        "caller_rss": run.peak("peak_rss", "caller"),
        "worker_rss": run.peak("peak_rss", "worker"),
        "worker_pss": run.peak("peak_pss", "worker"),
        "parent_share": 0.0 if is_alone else parent / run.total,
        "rows_a_second_on_64": 0.0 if is_alone else n_rows / (once + parent + work / CORES),
    }
    return found


def shards(out: Path) -> float:
    """The size of the median shard, as a share of the 64 MiB that were asked for."""
    sizes = sorted(path.stat().st_size for path in out.glob("shard-*"))
    return median(sizes) / (64 << 20) if sizes else 0.0


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| rows | workers | wall, s | CPU, s | caller | loads, forks | workers | parent's share "
        "| MiB of caller, a worker (PSS) | median shard / size | rows/s on 64 cores |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        is_alone = not row["workers_s"]
        share = "" if is_alone else f"{row['parent_share']:.1%}"
        projected = "" if is_alone else f"{row['rows_a_second_on_64']:,.0f}"
        memory = f"{row['caller_rss']:.0f}, {row['worker_rss']:.0f} ({row['worker_pss']:.0f})"
        cells = [
            f"{row['n_rows']:,}",
            row["workers"],
            f"{row['wall_s']:.2f}",
            f"{row['cpu_s']:.2f}",
            f"{row['caller_s']:.2f}",
            f"{row['mothers_s']:.2f}",
            f"{row['workers_s']:.2f}",
            share,
            memory,
            f"{row['shard_of_size']:.2f}",
            projected,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
