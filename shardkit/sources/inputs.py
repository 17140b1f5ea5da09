"""Which files the user's arguments mean, and what they are called."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from shardkit.errors import BadInput, UsageError
from shardkit.options import is_utf8, nearest
from shardkit.sources.copies import STDIN, Copies
from shardkit.sources.stray import is_stray
from shardkit.storage.open import is_url
from shardkit.storage.urls import shown_url

Split = Literal["train", "test", "all"]
_SUFFIXES = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar"),
    *(".gz", ".zst"),
)
_TESTS = re.compile(r"(?:^|[-_./])(?:test|validation|valid|val|dev|eval)(?:[-_.]|$)", re.IGNORECASE)
"""A name of rows that are not trained on."""
_NAMED = 5
"""Files of one kind that a note names."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of a folder or glob that is not packed, and why not."""

    name: str
    why: str


@dataclass(slots=True)
class Inputs:
    """The files that are meant, and those beside them that are left out."""

    paths: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """What each is called in a manifest."""
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What is left out, in words: a line for each reason."""
        reasons: dict[str, list[str]] = {}
        for one in self.left_out:
            reasons.setdefault(one.why, []).append(one.name)
        return [
            f"Left out, {why}: {', '.join(names[:_NAMED])}"
            + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            for why, names in reasons.items()
        ]


def expand_inputs(patterns: Sequence[str | Path], split: Split = "train") -> list[Path]:
    """Files, globs and folders as a list of files; each argument's files are sorted.

    A folder saved by `datasets.save_to_disk` counts as one input; another folder means its
    JSON, JSONL, CSV, Parquet and tar files, or those one level down. Of a folder or glob `split`
    chooses. Raises BadInput when an argument means nothing, or only files of another split;
    UsageError for a URL.
    """
    return find_inputs(patterns, split).paths


def find_inputs(
    patterns: Sequence[str | Path],
    split: Split = "train",
    exclude: Sequence[str] = (),
    copies: Copies | None = None,
) -> Inputs:
    """The same, with the files' names and those that are left out.

    `exclude`: patterns of names in folders and globs. `copies`: where URLs and stdin are copied
    to; without it they are refused.
    """
    found = Inputs()
    places: list[Path] = []
    for pattern in patterns:
        if not isinstance(pattern, Path) and (pattern == STDIN or is_url(pattern)):
            if copies is None:
                raise UsageError(
                    "stdin and URLs are inputs of pack and append alone",
                    found=str(pattern),
                    fix="Fetch the file, and name it here.",
                )
            fetched = _fetched(pattern, _Rule(split, exclude), copies, found)
            found.paths += [path for path, _ in fetched]
            places += [place for _, place in fetched]
        else:
            paths = _expand(str(pattern), _Rule(split, exclude), found)
            found.paths += paths
            places += [Path(os.path.abspath(path)) for path in paths]
    for path in found.paths:
        if not is_utf8(str(path)):
            raise BadInput(
                "the name of the input is not UTF-8",
                where=ascii(str(path)),
                fix="Rename the file: names of sources stand in the manifest, which is UTF-8.",
            )
    _refuse_twice(found.paths)
    found.names = names_of(places)
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


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which files of a folder or glob are meant."""

    split: Split
    exclude: Sequence[str]

    def keep(self, names: Sequence[str], found: Inputs, where: str, *, is_glob: bool) -> list[str]:
        """The names that stay; the others go to `found.left_out`.

        With nothing else beside them, test files are what is meant. `is_glob`: the names are
        whole paths, whose folders say nothing of a split. Raises BadInput when test files are
        asked for and only others are `where`.
        """
        excluded = [name for name in names if self._is_excluded(name)]
        found.left_out += [LeftOut(name, "as --exclude says") for name in excluded]
        names = [name for name in names if name not in excluded]
        tests = [
            name for name in names if _TESTS.search(name.rpartition("/")[2] if is_glob else name)
        ]
        others = [name for name in names if name not in tests]
        if self.split == "test" and others and not tests:
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            raise BadInput(
                "there is no test or validation file here for --split test",
                where=where,
                expected="a file whose name has test, validation, valid, val, dev or eval in it",
                found=", ".join(others[:_NAMED]) + more,
                fix="Name the files that are to be packed, or leave --split out.",
            )
        if self.split == "all" or not tests or not others:
            return names
        kept, left = (tests, others) if self.split == "test" else (others, tests)
        why = "as --split test says" if self.split == "test" else "test or validation rows"
        advice = "" if self.split == "test" else " (--split all packs all, --split test these)"
        found.left_out += [LeftOut(name, why + advice) for name in left]
        return kept

    def _is_excluded(self, name: str) -> bool:
        last = name.rpartition("/")[2]
        return any(fnmatch(name, one) or fnmatch(last, one) for one in self.exclude)


def _expand(pattern: str, rule: _Rule, found: Inputs) -> list[Path]:
    path = Path(pattern)
    if _is_input(path):
        return [path]
    if path.is_dir():
        inside = _files_in(path) or [
            file for one in sorted(path.iterdir()) if one.is_dir() for file in _files_in(one)
        ]
    else:
        matched = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        inside = [one for one in matched if _is_input(one)]
    if inside:
        root = path if path.is_dir() else None
        named = {one.relative_to(root).as_posix() if root else str(one): one for one in inside}
        kept = rule.keep(list(named), found, pattern, is_glob=root is None)
        files = [(name, named[name]) for name in kept]
        return [file for _, file in _without_strays(files, pattern, found)]
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
        expected="a file, a glob, or a folder with .json, .jsonl, .csv, .parquet or .tar files",
        fix=_near(path) or "Check the path (put a glob in quotes).",
    )


def _near(path: Path) -> str | None:
    """The file that was probably meant."""
    if not path.parent.is_dir() or glob.has_magic(str(path)):
        return None
    close = nearest(path.name, (one.name for one in path.parent.iterdir()))
    return f"Did you mean {path.with_name(close)}?" if close else None


def _without_strays(
    files: list[tuple[str, Path]], pattern: str, found: Inputs
) -> list[tuple[str, Path]]:
    """The files that hold rows; one JSON object alone is none. Raises BadInput without any."""
    strays = {name for name, path in files if is_stray(path)}
    found.left_out += [
        LeftOut(name, "one JSON object and no rows (name it to pack it)") for name in sorted(strays)
    ]
    kept = [(name, path) for name, path in files if name not in strays]
    if not kept:
        raise BadInput(
            "no file here holds rows",
            where=pattern,
            found=", ".join(one.name for one in found.left_out[:_NAMED]) or None,
            fix="Name the files that you mean; --exclude leaves out others.",
        )
    return kept


def _fetched(pattern: str, rule: _Rule, copies: Copies, found: Inputs) -> list[tuple[Path, Path]]:
    """Copies of what a URL or `-` means, and for each the place that names it."""
    if pattern == STDIN:
        return [(copies.stdin(), Path("/stdin"))]
    listed = copies.listed(pattern, _SUFFIXES)
    if listed is None:
        return [(copies.of(pattern), copies.place_of(pattern))]
    kept = rule.keep(sorted(listed), found, shown_url(pattern), is_glob=glob.has_magic(pattern))
    files = [(name, copies.of(listed[name])) for name in kept]
    return [
        (path, copies.place_of(listed[name]))
        for name, path in _without_strays(files, shown_url(pattern), found)
    ]


def _is_input(path: Path) -> bool:
    return path.is_file() or (path / "state.json").is_file()


def _files_in(folder: Path) -> list[Path]:
    """The data files of a folder, saved datasets among them."""
    return [
        one
        for one in sorted(folder.iterdir())
        if (one.name.endswith(_SUFFIXES) and one.is_file()) or (one / "state.json").is_file()
    ]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Each path relative to the folder that all share: names that hold no place of a machine.

    A link keeps its own name: that of its target may be a digest (as in the hub's cache).
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if len(absolute) == 1:
        return [absolute[0].name]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(common).as_posix() for path in absolute]
