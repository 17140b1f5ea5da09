"""What a shard should be, and what was found in it instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.check.findings import Finding
from shardkit.format.manifest import ShardEntry
from shardkit.format.recipe import RowRules
from shardkit.format.shard import Shard
from shardkit.processors import VisionProcessor

MAX_PER_KIND = 20
"""Findings of one code that a shard reports one by one; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the manifest says of every shard."""

    recipe: dict[str, Any]
    rules: RowRules
    vocab_size: int | None
    max_length: int | None
    source_names: tuple[str, ...]
    picture_token: int | None = None
    """The id that is repeated for a picture, of a dataset that was packed with a processor."""
    processor: VisionProcessor | None = None
    """The processor of the dataset, where the tokens of pictures are to be counted again."""


@dataclass(slots=True)
class ShardReport:
    """What was found in one shard, and which source rows it holds."""

    findings: list[Finding] = field(default_factory=list)
    sources: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    records: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """(n,) source and row in it of each sample that begins in the shard."""
    n_images: int = 0


class ShardCheck:
    """A shard that is being checked against what is expected of it; `say` reports a finding."""

    def __init__(
        self, shard: Shard, entry: ShardEntry, expected: Expectation, report: ShardReport
    ) -> None:
        self.shard = shard
        self.entry = entry
        self.expected = expected
        self.report = report
        self._n_by_code: dict[str, int] = {}

    def say(self, code: str, message: str, i: int | None = None) -> None:
        """Report a finding, of the shard or of sample `i`; only so many of one code."""
        self._n_by_code[code] = self._n_by_code.get(code, 0) + 1
        if self._n_by_code[code] > MAX_PER_KIND:
            return
        sample = row = None
        if i is not None:
            sample = self.shard.key(i)
            source, record = int(self.shard.index["source"][i]), int(self.shard.index["record"][i])
            names = self.expected.source_names
            row = f"{names[source] if source < len(names) else f'source {source}'} row {record}"
        self.report.findings.append(
            Finding(code, message, shard=self.entry.name, sample=sample, source_row=row)
        )

    def say_each(
        self, rows: NDArray[np.int64], wrong: NDArray[np.bool_], code: str, message: str
    ) -> None:
        """Report one message for every sample of `rows`, (n,), where `wrong`, (n,), is set."""
        for i in rows[wrong].tolist():
            self.say(code, message, i)

    def say_how_many_more(self) -> None:
        """Report how many findings of each code were not reported one by one."""
        for code, n in self._n_by_code.items():
            if n > MAX_PER_KIND:
                more = f"and {n - MAX_PER_KIND} more of this kind"
                self.report.findings.append(Finding(code, more, shard=self.entry.name))
