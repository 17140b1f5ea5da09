"""Which files the user's arguments mean, and what they are called."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shardkit.errors import BadInput
from shardkit.options import is_utf8

Split = Literal["train", "test", "all"]
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".tar", ".gz", ".zst")
_TESTS = re.compile(r"(?:^|[-_./])(?:test|validation|valid|val|dev|eval)(?:[-_.]|$)", re.IGNORECASE)
"""A name of rows that are not trained on."""


@dataclass(slots=True)
class Inputs:
    """The files that are meant, and those beside them that are left out."""

    paths: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def expand_inputs(patterns: Sequence[str | Path], split: Split = "train") -> list[Path]:
    """Files, globs and folders as a list of files; each argument's files are sorted.

    A folder saved by `datasets.save_to_disk` counts as one input; another folder means its
    JSON, JSONL, Parquet and tar files, or those one level down. Of a folder or glob `split`
    chooses. Raises BadInput when an argument means nothing.
    """
    return find_inputs(patterns, split).paths


def find_inputs(patterns: Sequence[str | Path], split: Split = "train") -> Inputs:
    """The same, with the files that are left out."""
    found = Inputs()
    for pattern in patterns:
        one = _expand(str(pattern), split)
        found.paths += one.paths
        found.left_out += one.left_out
    for path in found.paths:
        if not is_utf8(str(path)):
            raise BadInput(
                "the name of the input is not UTF-8",
                where=ascii(str(path)),
                fix="Rename the file: names of sources stand in the manifest, which is UTF-8.",
            )
    _refuse_twice(found.paths)
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


def _expand(pattern: str, split: Split) -> Inputs:
    path = Path(pattern)
    if _is_input(path):
        return Inputs([path])
    if path.is_dir():
        inside = _files_in(path) or [
            file for one in sorted(path.iterdir()) if one.is_dir() for file in _files_in(one)
        ]
    else:
        matched = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        inside = [one for one in matched if _is_input(one)]
    if inside:
        return _chosen(inside, path if path.is_dir() else None, split)
    if path.is_dir():
        raise BadInput(
            "there is no file to read in this folder, nor one level down",
            where=pattern,
            expected=", ".join(_SUFFIXES),
            fix="Name the files, as a glob in quotes.",
        )
    raise BadInput(
        "there is no such input",
        where=pattern,
        expected="a file, a glob, or a folder with .json, .jsonl, .parquet or .tar files",
        fix="Check the path (put a glob in quotes).",
    )


def _is_input(path: Path) -> bool:
    return path.is_file() or (path / "state.json").is_file()


def _files_in(folder: Path) -> list[Path]:
    """The data files of a folder, saved datasets among them."""
    return [
        one
        for one in sorted(folder.iterdir())
        if (one.name.endswith(_SUFFIXES) and one.is_file()) or (one / "state.json").is_file()
    ]


def _chosen(files: list[Path], folder: Path | None, split: Split) -> Inputs:
    """The files of the split; with nothing else beside them, test files are what is meant."""

    def is_test(path: Path) -> bool:
        name = path.relative_to(folder).as_posix() if folder else path.name
        return _TESTS.search(name) is not None

    tests = [path for path in files if is_test(path)]
    others = [path for path in files if path not in tests]
    if split == "all" or not tests or not others:
        return Inputs(files)
    return Inputs(tests, others) if split == "test" else Inputs(others, tests)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Each path relative to the folder that all share: names that hold no place of a machine.

    A link keeps its own name: that of its target may be a digest (as in the hub's cache).
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if len(absolute) == 1:
        return [absolute[0].name]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(common).as_posix() for path in absolute]
