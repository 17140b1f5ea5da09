"""What came of one injected fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """From harmless to worst. From SILENT on, it is a fault of ours."""

    SAME = "identical"
    """The data, or the files made, are what they are without the fault."""
    REFUSED = "refused"
    """An error of ours, which names the file that is wrong."""
    UNNAMED = "unnamed"
    """An error of ours, which names another file, or none."""
    SILENT = "silent"
    """Other data than before, or a check that calls damaged bytes good."""
    FOREIGN = "foreign"
    """An exception that is not ours: a traceback for who uses the command."""
    HANG = "hang"
    """Not done in the time that a kind gives."""
    DIED = "died"
    """The process was ended by a signal: SIGBUS, abort, the memory killer."""


BAD = frozenset({Outcome.SILENT, Outcome.FOREIGN, Outcome.HANG, Outcome.DIED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a case, what was done, and what was seen."""

    outcome: Outcome
    fault: str
    """What was done: `bit 3 of byte 1201 of shard-00001.tar, zstd`."""
    seen: str = ""
    """The error, or how the data differs."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was done how often, beside the case: kills of a command, by its name."""

    @property
    def is_bad(self) -> bool:
        """Whether it is a fault of ours."""
        return self.outcome in BAD


def worst(*verdicts: Verdict) -> Verdict:
    """The last of them in the order of Outcome."""
    order = list(Outcome)
    return max(verdicts, key=lambda verdict: order.index(verdict.outcome))
