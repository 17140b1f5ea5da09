"""Rejected rows, a page at a time, by their place in rejects.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardkit.dataset import Dataset
from shardkit.report.reject_lines import RejectLine, lines_of, open_rejects

PAGE = 25
"""Lines of a page."""
MAX_BYTES = 64 << 20
"""Bytes of the file that one page looks at, at most."""


@dataclass(slots=True)
class Rejects:
    """One page of rejected rows."""

    lines: list[RejectLine] = field(default_factory=list)
    next: int | None = None
    """Where the next page begins, bytes; None at the end of the file."""


def read_rejects(dataset: Dataset, start: int, *, reason: str = "", source: str = "") -> Rejects:
    """The rejected rows from a byte of the file on, which is the beginning of a line."""
    found = Rejects()
    file = open_rejects(dataset)
    if file is None:
        return found
    with file:
        file.seek(start)
        for line, end in lines_of(file):
            if line and reason in ("", line.reason) and source in ("", line.source):
                found.lines.append(line)
            if len(found.lines) == PAGE or end - start > MAX_BYTES:
                found.next = end
                break
        if found.next is not None and not file.readline():
            found.next = None
    return found
