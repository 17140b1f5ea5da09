"""What a check found: problems and notes, each with its place and what to do."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from shardkit.errors import ShardkitError

Severity = Literal["error", "warning"]


FOREIGN = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, MemoryError, EOFError, msgspec.MsgspecError),
)
"""What reading bytes that lie may raise, where nobody foresaw the lie: a finding, no traceback."""


def in_words(err: BaseException) -> str:
    """An error in one line; one that is not ours with its kind."""
    if isinstance(err, ShardkitError):
        return err.message_line()
    if isinstance(err, OSError):
        return err.strerror or str(err)
    return f"{type(err).__name__}: {err}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (error) or odd (warning)."""

    code: str
    """A short fixed name, such as sample-hash or label-value."""
    message: str
    severity: Severity = "error"
    shard: str | None = None
    sample: str | None = None
    source_row: str | None = None
    """The place of the source row, as `FILE row N`."""

    def place(self) -> str:
        """Where the finding is, in one line: shard, sample and source row."""
        parts = [self.shard, self.sample, f"({self.source_row})" if self.source_row else None]
        return " ".join(part for part in parts if part)


@dataclass(slots=True)
class Findings:
    """The result of `verify`."""

    path: str
    findings: list[Finding] = field(default_factory=list)
    n_shards: int = 0
    n_samples: int = 0
    n_tokens: int = 0
    n_images: int = 0
    n_bytes: int = 0
    n_rows_retokenised: int = 0
    checked: list[str] = field(default_factory=list)
    """What was looked at, in words."""

    @property
    def problems(self) -> list[Finding]:
        """The errors among the findings."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def damaged_shards(self) -> list[str]:
        """Shards with a problem, in order, each once."""
        return list(dict.fromkeys(f.shard for f in self.problems if f.shard))

    @property
    def next_command(self) -> str | None:
        """What to type next; None when all is good."""
        if self.damaged_shards and "://" in self.path:
            return "shardkit repair FOLDER --source FILE ... (FOLDER: a copy of the dataset)"
        if self.damaged_shards:
            return f"shardkit repair {shlex.quote(self.path)} --source FILE ..."
        return None
