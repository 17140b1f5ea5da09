"""Which files the user's arguments mean, and what they are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from shardkit.errors import BadInput
from shardkit.options import is_utf8

_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".zst")


def expand_inputs(patterns: Sequence[str | Path]) -> list[Path]:
    """Files, globs and folders as a list of files; each argument's files are sorted.

    A folder saved by `datasets.save_to_disk` counts as one input; another folder means its
    JSON, JSONL and Parquet files. Raises BadInput when an argument means nothing.
    """
    found: list[Path] = []
    for pattern in patterns:
        found += _expand(str(pattern))
    for path in found:
        if not is_utf8(str(path)):
            raise BadInput(
                "the name of the input is not UTF-8",
                where=ascii(str(path)),
                fix="Rename the file: names of sources stand in the manifest, which is UTF-8.",
            )
    _refuse_twice(found)
    return found


def _refuse_twice(paths: Sequence[Path]) -> None:
    """Raise BadInput when two paths lead to one file, however they are spelled."""
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        status = path.stat()
        before = seen.setdefault((status.st_dev, status.st_ino), path)
        if before is not path:
            raise BadInput(
                "an input is named twice",
                where=str(path),
                found=f"the same file as {before}" if before != path else None,
                fix="Name each file once. To weigh data, use ShardMixture.",
            )


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file() or (path / "state.json").is_file():
        return [path]
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.name.endswith(_SUFFIXES) and p.is_file())
        if inside:
            return inside
    matched = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [p for p in matched if p.is_file() or (p / "state.json").is_file()]
    if files:
        return files
    raise BadInput(
        "there is no such input",
        where=pattern,
        expected="a file, a glob, or a folder with .json, .jsonl or .parquet files",
        fix="Check the path (put a glob in quotes).",
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Each path relative to the folder that all share: names that hold no place of a machine.

    A link keeps its own name: that of its target may be a digest (as in the hub's cache).
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if len(absolute) == 1:
        return [absolute[0].name]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(common).as_posix() for path in absolute]
