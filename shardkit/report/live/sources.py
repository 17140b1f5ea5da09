"""Source rows as they stand in their files, where the files are there and are the same ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import msgspec
import numpy as np

from shardkit.conversation import Reject
from shardkit.dataset import Dataset
from shardkit.report.page.marks import visible
from shardkit.sources.inputs import find_again
from shardkit.sources.rows import read_some
from shardkit.sources.scan import SourceScan, scan

MAX_CHARACTERS = 20_000
"""Characters of a row that are shown."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as its file has it, or why it cannot be shown."""

    source: str
    row: int
    text: str | None
    note: str = ""


class SourceFiles:
    """The given files, each scanned when one of its rows is first asked for."""

    def __init__(self, dataset: Dataset, files: list[Path], spool: Path) -> None:
        self._sources = {source.name: source for source in dataset.manifest.sources}
        self._spool = spool
        self._lock = Lock()
        self._scans: dict[str, SourceScan | str] = {}
        self._paths: dict[str, Path] = {}
        for path in find_again(files, list(self._sources)) if files else ():
            ends = path.absolute().parts
            for name in self._sources:
                parts = name.split("/")
                if list(ends[-len(parts) :]) == parts:
                    self._paths.setdefault(name, path)

    def __bool__(self) -> bool:
        return bool(self._paths)

    def row(self, source: str, row: int) -> SourceRow:
        """A row of a source file, which the manifest calls `source`; BadInput when it changed."""
        with self._lock:
            found = self._scan(source)
        if isinstance(found, str):
            return SourceRow(visible(source), row, None, found)
        if not 0 <= row < found.n_rows:
            return SourceRow(visible(source), row, None, "The file has no such row.")
        (value,) = read_some(found, np.array([row]))
        if isinstance(value, Reject):
            return SourceRow(visible(source), row, None, visible(value.detail))
        plain = msgspec.to_builtins(value, str_keys=True)
        text = visible(json.dumps(plain, indent=2, ensure_ascii=False, default=repr))
        if len(text) > MAX_CHARACTERS:
            text = f"{text[:MAX_CHARACTERS]} … {len(text) - MAX_CHARACTERS:,} characters more"
        return SourceRow(visible(source), row, text)

    def _scan(self, source: str) -> SourceScan | str:
        if source not in self._scans:
            path = self._paths.get(source)
            self._scans[source] = "Its file was not given with --source."
            if path is not None:
                prefix = self._spool / f"source-{len(self._scans)}"
                found = scan(path, name=source, spool=prefix)
                is_same = found.sha256 == self._sources[source].sha256
                note = f"{path} is not the file that was packed: its sha256 differs."
                self._scans[source] = found if is_same else note
        return self._scans[source]
