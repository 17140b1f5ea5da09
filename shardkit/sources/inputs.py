"""Which files the user's arguments mean, and what they are called."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

from shardkit.errors import BadInput, UsageError
from shardkit.options import is_utf8, nearest_path
from shardkit.sources.copies import DEPTH, STDIN, Copies
from shardkit.sources.splits import LeftOut, Rule, Split
from shardkit.sources.stray import is_stray
from shardkit.storage.open import is_url
from shardkit.storage.urls import shown_url

_SUFFIXES = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar"),
    *(".gz", ".zst"),
)
_NAMED = 5
"""Files of one kind that a note names."""
_LOOKED_THROUGH = 10_000
_SHARDS = "shard-*.tar*"
_STRAY = "one JSON object and no rows (name it to pack it)"
T = TypeVar("T")


@dataclass(slots=True)
class Inputs:
    """The files that are meant, and those beside them that are left out."""

    paths: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """What each of the paths is called in a manifest."""
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
    JSON, JSONL, CSV, Parquet and tar files, or where it has none those of the folders in it, or
    of the folders in these. Of a folder or glob `split` chooses. Raises BadInput when an argument
    means nothing, or only files of another split; UsageError for a URL.
    """
    return find_inputs(patterns, split).paths


def find_inputs(
    patterns: Sequence[str | Path],
    split: Split = "train",
    exclude: Sequence[str] = (),
    copies: Copies | None = None,
) -> Inputs:
    """The files that inputs name, with the names they are called by, and those left out.

    `exclude`: patterns of names in folders and globs. `copies`: where URLs and stdin are copied
    to; without it they are refused. Raises BadInput when an argument means nothing, a file is
    named twice or not in UTF-8, UsageError for what is refused, StorageError.
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
            fetched = _fetched(pattern, Rule(split, exclude), copies, found)
            found.paths += [path for path, _ in fetched]
            places += [place for _, place in fetched]
        else:
            paths = _expand(str(pattern), Rule(split, exclude), found)
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


def find_again(patterns: Sequence[str | Path], names: Sequence[str]) -> list[Path]:
    """The files that were packed before under these names, where an argument means several.

    Of a folder or glob those that a name is the end of, whatever their split; all where none is.
    Raises what expand_inputs raises.
    """
    known = {PurePosixPath(name).parts for name in names}
    lengths = {len(parts) for parts in known}
    found: list[Path] = []
    for pattern in patterns:
        paths = expand_inputs([pattern], "all")
        ends = {path: path.absolute().parts for path in paths}
        same = [one for one in paths if any(ends[one][-n:] in known for n in lengths)]
        found += same or paths
    _refuse_twice(found)
    return found


def _expand(pattern: str, rule: Rule, found: Inputs) -> list[Path]:
    path = Path(pattern)
    _refuse_packed(path)
    if _is_input(path):
        return [path]
    if path.is_dir():
        paths = [one for _, one in _chosen(_levels(path), Path, pattern, rule, found)]
        if paths:
            return paths
        raise BadInput(
            "there is no file to read in this folder, nor in the folders of two levels down",
            where=pattern,
            expected=", ".join(_SUFFIXES),
            fix=_deeper(path) or "Name the files, as a glob in quotes.",
        )
    matched = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    inside = {str(one): one for one in matched if _is_input(one)}
    for one in matched:
        _refuse_packed(one)
    paths = [one for _, one in _chosen([inside], Path, pattern, rule, found)]
    if paths:
        return paths
    raise BadInput(
        "there is no such input",
        where=pattern,
        expected="a file, a glob, or a folder with .json, .jsonl, .csv, .parquet or .tar files",
        fix=_near(path) or "Check the path (put a glob in quotes).",
    )


def _refuse_packed(path: Path) -> None:
    """Raise BadInput for what a pack wrote: a folder with a manifest and shards, or a shard."""
    folder = path if path.is_dir() else path.parent
    is_packed = fnmatch(path.name, _SHARDS) if folder != path else any(folder.glob(_SHARDS))
    if is_packed and (folder / "manifest.json").is_file():
        raise BadInput(
            "this is a packed dataset, not what one is made of",
            where=str(path),
            fix="Name the raw files. shardkit repack makes other packs or lengths of a dataset, "
            "merge one of several.",
        )


def _chosen(
    levels: Iterable[Mapping[str, T]],
    path_of: Callable[[T], Path],
    pattern: str,
    rule: Rule,
    found: Inputs,
) -> list[tuple[str, T]]:
    """The files that are meant of the first level that has any: (name, the level's value).

    A file without rows is none (one JSON object alone); nothing when there is no file at all.
    Raises BadInput when there are only such, or only files of another split.
    """
    n_fixed, n_before = _n_fixed(pattern), len(found.left_out)
    for level in levels:
        names = rule.not_excluded(level, found.left_out)
        chosen = rule.of_split(names, found.left_out, n_fixed)
        files = {name: level[name] for name in chosen}
        strays = [name for name, one in files.items() if is_stray(path_of(one))]
        found.left_out += [LeftOut(name, _STRAY) for name in sorted(strays)]
        kept = [(name, one) for name, one in files.items() if name not in strays]
        if kept:
            return kept
        rule.refuse_others(names, strays, shown_url(pattern) if is_url(pattern) else pattern)
    left_out = found.left_out[n_before:]
    if left_out:
        raise BadInput(
            "no file here holds rows",
            where=shown_url(pattern) if is_url(pattern) else pattern,
            found=", ".join(one.name for one in left_out[:_NAMED]),
            fix="Name the files that you mean; --exclude leaves out others.",
        )
    return []


def _levels(folder: Path) -> Iterator[dict[str, Path]]:
    """The data files of a folder, of the folders in it, of those in these: by relative name."""
    folders = [folder]
    for _ in range(DEPTH):
        files = [file for one in folders for file in _files_in(one)]
        yield {file.relative_to(folder).as_posix(): file for file in files}
        folders = [
            inner
            for one in folders
            for inner in sorted(one.iterdir())
            if inner.is_dir() and not inner.name.startswith(".")
        ]


def _n_fixed(pattern: str) -> int:
    """How many names of a glob stand before the first that may be another; 0 for a folder."""
    if not glob.has_magic(pattern):
        return 0
    parts = pattern.partition("://")[2].split("/") if is_url(pattern) else Path(pattern).parts
    return next(i for i, part in enumerate(parts) if glob.has_magic(part))


def _deeper(folder: Path) -> str | None:
    """Where files are that lie too deep; not all of a large tree is looked through."""
    seen = islice(folder.rglob("*"), _LOOKED_THROUGH)
    file = next((one for one in seen if one.name.endswith(_SUFFIXES)), None)
    return f"Files are further down, as {file}: name that folder." if file else None


def _near(path: Path) -> str | None:
    """The file that was probably meant."""
    close = None if glob.has_magic(str(path)) else nearest_path(path)
    return f"Did you mean {close}?" if close else None


def _fetched(pattern: str, rule: Rule, copies: Copies, found: Inputs) -> list[tuple[Path, Path]]:
    """Copies of what a URL or `-` means, and for each the place that names it."""
    if pattern == STDIN:
        return [(copies.stdin(), Path("/stdin"))]
    levels = copies.levels(pattern, _SUFFIXES)
    if levels is None:
        return [(copies.of(pattern), copies.place_of(pattern))]
    copy_of = functools.cache(copies.of)
    chosen = _chosen(levels, copy_of, pattern, rule, found)
    return [(copy_of(url), copies.place_of(url)) for _, url in chosen]


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
