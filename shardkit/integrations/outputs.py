"""Where an export goes: never onto something that is there."""

from __future__ import annotations

from pathlib import Path

from shardkit.errors import BuildConflict
from shardkit.storage.open import path_here


def new_folder(out: str | Path) -> Path:
    """The folder of an export here; raises BuildConflict when something is in it, or is it."""
    out = path_here(out, "the output of an export")
    if out.exists() and not out.is_dir():
        raise BuildConflict("the output is a file", where=str(out), fix="Give a new folder.")
    if out.exists() and any(out.iterdir()):
        raise BuildConflict(
            "the output folder is not empty", where=str(out), fix="Give a new folder."
        )
    return out
