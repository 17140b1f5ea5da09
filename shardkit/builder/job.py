"""What a build engine is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from shardkit.builder.plan import Plan

OnRows: TypeAlias = Callable[[int, int], None]
"""Called with (rows, tokens) done since the last call."""


@dataclass(frozen=True, slots=True)
class Job:
    """Parts to build, and with what."""

    plan: Plan
    folder: Path
    """OUT/.building, or a folder in it."""
    parts: Sequence[int]
    workers: int
    on_rows: OnRows
    ray_address: str | None = None
