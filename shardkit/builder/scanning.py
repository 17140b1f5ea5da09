"""Inputs are scanned: in this process, or by several, which find row borders range by range.

The digest of a large file is one pass over its bytes that nothing can split: a worker makes it
while others build, and the plan has it before anything is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from shardkit.builder.job import killed
from shardkit.processes import ForkPool
from shardkit.sources import SourceScan, scan
from shardkit.sources.ranges import (
    RANGE_BYTES,
    Cut,
    Wanted,
    digest_of,
    digested,
    find_borders,
    looked_at,
    put_together,
    ready,
)

T = TypeVar("T")
OnBytes = Callable[[int, int], None]
"""Called with the bytes that were scanned since the last call, and all bytes."""


def scan_pool(workers: int) -> ForkPool:
    """Processes that scan; they load nothing."""
    pool = ForkPool(ready, "shardkit scanner")
    pool.begin(workers=workers)
    return pool


class Scanner:
    """Scans inputs; `pool`: who does so, None for this process."""

    def __init__(self, pool: ForkPool | None = None, on_bytes: OnBytes | None = None) -> None:
        self._pool = pool
        self._on_bytes = on_bytes
        self.n_bytes = 0
        """Bytes of all inputs, as `on_bytes` is told."""
        self._scans: list[SourceScan] = []
        self._digesting: list[str] = []

    def scan(self, wanted: Sequence[tuple[Path, str, Path]]) -> list[SourceScan]:
        """Scans of (path, name, spool); with a pool, digests of large files are missing.

        Raises what `scan` raises, and BuildFailed when a worker was killed.
        """
        if self._pool is None:
            return [
                scan(path, name=name, spool=spool, progress=self._tell)
                for path, name, spool in wanted
            ]
        files = [Wanted(*one, range_bytes=RANGE_BYTES) for one in wanted]
        looked = self._done(looked_at, files, lambda i: files[i].path)
        found = {i: one for i, one in enumerate(looked) if isinstance(one, SourceScan)}
        cuts = {i: one for i, one in enumerate(looked) if isinstance(one, Cut)}
        for one in found.values():
            self.known(one)
        tasks = [(cut, number) for cut in cuts.values() for number in range(len(cut.begins))]
        counts = self._done(find_borders, tasks, lambda i: tasks[i][0].wanted.path, tasks)
        whole, first = [], 0
        for cut in cuts.values():
            last = first + len(cut.begins)
            whole.append((cut, tuple(counts[first:last])))
            first = last
        made = self._done(put_together, whole, lambda i: whole[i][0].wanted.path)
        found |= dict(zip(cuts, made, strict=True))
        return [found[i] for i in range(len(files))]

    def known(self, one: SourceScan) -> None:
        """Tell that a whole file was scanned, or need not be."""
        self._tell(one.n_bytes)

    def _tell(self, n_bytes: int) -> None:
        if self._on_bytes:
            self._on_bytes(n_bytes, self.n_bytes)

    def begin_digests(self, scans: Sequence[SourceScan]) -> None:
        """Have a pool find the missing digests while this process goes on; the largest file first.

        Without a pool `digests` finds them.
        """
        self._scans = list(scans)
        missing = [one for one in scans if not one.sha256]
        missing.sort(key=lambda one: -one.n_bytes)
        self._digesting = [one.path for one in missing]
        if self._pool is not None and missing:
            self._send(digest_of, self._digesting)

    def digests(self) -> list[SourceScan]:
        """The scans, all of them with a digest. Raises BadInput when an input changed meanwhile."""
        paths, self._digesting = self._digesting, []
        if self._pool is None:
            sums = [digest_of(path) for path in paths]
        else:
            found = self._results(paths.__getitem__, None) if paths else {}
            sums = [found[i] for i in range(len(paths))]
        of_path = dict(zip(paths, sums, strict=True))
        self._scans = [
            one if one.sha256 else digested(one, of_path[one.path]) for one in self._scans
        ]
        return self._scans

    def _done(
        self,
        call: Callable[[T], Any],
        tasks: Sequence[T],
        path_of: Callable[[int], Path],
        ranges: Sequence[tuple[Cut, int]] | None = None,
    ) -> list[Any]:
        if self._pool is None or not tasks:
            return []
        self._send(call, tasks)
        found = self._results(path_of, ranges)
        return [found[i] for i in range(len(tasks))]

    def _send(self, call: Callable[[T], Any], tasks: Sequence[T]) -> None:
        try:
            if self._pool is not None:
                self._pool.send(call, tasks)
        except BrokenProcessPool as err:
            raise killed("the scan of the inputs") from err

    def _results(
        self, path_of: Callable[[int], object], ranges: Sequence[tuple[Cut, int]] | None
    ) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        try:
            for number, one in self._pool.results() if self._pool is not None else ():
                if isinstance(one, BaseException):
                    raise one
                found[number] = one
                if ranges:
                    cut = ranges[number][0]
                    self._tell(cut.stamp[1] // len(cut.begins))
        except BrokenProcessPool as err:
            raise killed(str(path_of(number))) from err
        return found
