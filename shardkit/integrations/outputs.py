"""Where an export goes: never onto something that is there."""

from __future__ import annotations

from pathlib import Path

from shardkit.errors import BuildConflict


def refuse_used(out: Path) -> None:
    """Raise BuildConflict for a folder that holds something, and for a file."""
    if out.exists() and not out.is_dir():
        raise BuildConflict("the output is a file", where=str(out), fix="Give a new folder.")
    if out.exists() and any(out.iterdir()):
        raise BuildConflict(
            "the output folder is not empty", where=str(out), fix="Give a new folder."
        )
