"""Where two identities or recipes differ, in words: what a refusal says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differing(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    path: str = "",
    words: tuple[str, str] = ("before", "now"),
) -> list[str]:
    """Where two identities differ, a line for each field: its path, and the two values.

    {"system": "a"} and {"system": "b"} → ["system: a before, b now"]. `path`: what each line begins
    with; `words`: what is said behind the first value, and behind the second.
    """
    lines = []
    for key in sorted({*first, *second}):
        ours, theirs = first.get(key), second.get(key)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            lines += differing(ours, theirs, f"{path}{key}.", words)
        else:
            lines.append(f"{path}{key}: {_short(ours)} {words[0]}, {_short(theirs)} {words[1]}")
    return lines


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
