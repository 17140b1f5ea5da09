"""One run of one packer in this process: `child.py NAME TASK` prints a JSON object."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path


def cpu_s() -> float:
    """CPU seconds of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Of packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Run and print."""
    name, fields = sys.argv[1], json.loads(sys.argv[2])
    begun = time.perf_counter()
    if fields["workers"] == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from common import Task

    packer = importlib.import_module(f"packer_{name}")
    paths = {key: Path(fields.pop(key)) for key in ("source", "tokenizer", "folder")}
    run = packer.start(Task(**paths, **fields))
    started, started_cpu = time.perf_counter(), cpu_s()
    result = run()
    wall, cpu = time.perf_counter() - started, cpu_s() - started_cpu
    out = {
        "startup_s": started - begun + result.idle_s,
        "startup_cpu_s": started_cpu + result.idle_cpu_s,
        "wall_s": wall - result.idle_s,
        "cpu_s": cpu - result.idle_cpu_s,
        "n_rows": result.n_rows,
        "n_tokens": result.n_tokens,
        "versions": versions(packer.packages),
    }
    print(f"\n{json.dumps(out)}")


if __name__ == "__main__":
    main()
