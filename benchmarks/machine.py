"""What a benchmark ran on, for its JSON: every script prints {benchmark, machine, rows}."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def load() -> float:
    """Processes that want a processor, over the last minute."""
    return round(os.getloadavg()[0], 1)


def machine(loads: Sequence[float], versions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Processor, its count, Python, the load before each round, and versions of packages."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return {
        "processor": model,
        "n_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": platform.system(),
        "load": list(loads),
        "versions": dict(versions or {}),
    }
