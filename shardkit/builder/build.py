"""Who builds the parts that are not done yet, and how far that is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from shardkit.builder.build_engines import ENGINES, BuildOptions
from shardkit.builder.job import Job, Prepared
from shardkit.builder.plan import Plan
from shardkit.builder.receipt import Receipt, done_receipt, untrusted
from shardkit.builder.scanning import Scanner, scan_pool
from shardkit.builder.whole import Second, Sections, is_whole, rows_of, write_sections
from shardkit.errors import ShardkitError, UsageError
from shardkit.options import chosen, flag_name, hints_of
from shardkit.processes import can_fork, n_cores
from shardkit.sources import expand_inputs
from shardkit.tokens import REFERENCE

T = TypeVar("T")
R = TypeVar("R")

MUCH_BYTES = 48 << 20
"""Bytes of text from which two workers win with a fast engine; with 22 MB they take as long."""
MUCH_BYTES_SLOW = 2 << 20
"""Bytes of text from which two workers win with the reference engine, ten times as slow."""
MUCH_PICTURES = 500
"""Rows with pictures from which two workers win: each picture is decoded once."""
SCAN_BYTES = 32 << 20
"""Bytes of input from which several processes scan it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pack is.

    `fetch` (of `name`), `scan` and `upload` count bytes, `build` rows; `commit` counts sections of
    packs over a whole input, and is told once, with 0 of 1, when all parts are built.
    """

    stage: Literal["fetch", "scan", "build", "commit", "upload"]
    n_done: int
    n_total: int
    n_tokens: int = 0
    name: str = ""


OnProgress = Callable[[Progress], None]
"""Called with how far a pack is, whenever that changes."""


class BuildRun:
    """Builds parts with one engine; tells the caller what is done, all workers added up.

    `given`: keyword arguments, of which those that say who builds are taken (BuildOptions, and
    the chosen engine's own). Raises UsageError, also for an option of another engine.
    """

    def __init__(self, given: Mapping[str, object], on_progress: OnProgress | None) -> None:
        self._options = chosen(BuildOptions, given)
        self._engine = ENGINES[self._options.build_engine]
        _refuse_foreign(given, self._options.build_engine)
        self._own = chosen(self._engine.options, given)
        self._on_progress = on_progress
        self._until_end = ExitStack()
        self._waiting: Prepared | None = None
        self._working: Prepared | None = None
        self.scanner = Scanner(None, self.scanned)
        self._n_bytes = self._n_rows = self._n_tokens = self._n_total = 0

    @contextmanager
    def prepared(self, files: Sequence[str | Path]) -> Iterator[None]:
        """While it lasts, workers for these inputs may run; they begin before there is a plan."""
        with self._until_end:
            workers, n_bytes = self._expected(files)
            if workers > 1 and self._engine.prepare is not None:
                if n_bytes >= SCAN_BYTES and can_fork():
                    pool = self._until_end.enter_context(scan_pool(workers))
                    self.scanner = Scanner(pool, self.scanned)
                self._waiting = self._until_end.enter_context(closing(self._engine.prepare()))
            yield

    def _expected(self, files: Sequence[str | Path]) -> tuple[int, int]:
        """How many workers are to be expected, and bytes of input."""
        n_bytes = 0
        for name in map(str, files):  # what is elsewhere, or a pipe, is not looked at
            with suppress(ShardkitError, OSError):
                paths = [Path(name)] if os.path.isfile(name) else []
                if os.path.isdir(name):
                    paths = [path for path in expand_inputs([name]) if path.is_file()]
                n_bytes += sum(path.stat().st_size for path in paths)
        if self._options.workers != "auto":
            return self._options.workers, n_bytes
        return (n_cores() if n_bytes >= MUCH_BYTES else 1), n_bytes

    def map(self, call: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
        """Results in order, by the workers that built, where there are some."""
        if self._working is None:
            return [call(task) for task in tasks]
        return self._working.map(call, tasks)

    def _n_workers(self, plan: Plan) -> int:
        if self._options.workers != "auto":
            return self._options.workers
        return n_cores() if _is_much(plan) else 1

    def build(self, plan: Plan, folder: Path, parts: Sequence[int]) -> list[Receipt]:
        """Build the parts that are not done; the receipts of all, in order.

        What a fast tokenizer engine made is built again without it when the engine was found
        wrong on the way, or when `hf` is asked for now.
        """
        self._n_total = sum(last - first for first, last in map(plan.part_bounds, parts))
        plan = rows_of(plan) if is_whole(plan) else plan
        receipts: dict[int, Receipt] = {}
        for part in parts:
            receipt = done_receipt(plan.key, folder, part)
            if receipt is not None and _is_wanted(receipt, plan):
                receipts[part] = receipt
        if receipts:
            done = receipts.values()
            self._built(sum(r.n_rows for r in done), sum(r.n_tokens for r in done))
        self._run(plan, folder, [part for part in parts if part not in receipts], receipts)
        again = untrusted(receipts.values())
        for part in again:
            self._built(-receipts[part].n_rows, -receipts[part].n_tokens)
        careful = replace(plan, options=msgspec.structs.replace(plan.options, engine=REFERENCE))
        self._run(careful, folder, again, receipts)
        return [receipts[part] for part in parts]

    def _run(
        self, plan: Plan, folder: Path, parts: list[int], receipts: dict[int, Receipt]
    ) -> None:
        if parts:
            workers = min(self._n_workers(plan), len(parts))
            if workers > 1 and self._engine.prepare is not None:
                fresh = self._waiting or self._until_end.enter_context(
                    closing(self._engine.prepare())
                )
                self._working, self._waiting = fresh, None
            job = Job(plan, folder, parts, workers, self._built, self._own, self._working)
            for receipt in self._engine.run(job):
                receipts[receipt.part] = receipt

    def packed(self, plan: Plan, folder: Path, receipts: Sequence[Receipt]) -> Sections | None:
        """The second pass over all parts, where the plan has one."""
        if not is_whole(plan):
            return None
        second = Second.of(plan, plan.options.compression, receipts, folder)
        return write_sections(second, self._n_workers(plan), self._packing)

    def _packing(self, n_done: int, n_total: int) -> None:
        self._say(Progress("commit", n_done, n_total))

    def fetched(self, name: str, n_bytes: int, n_total: int) -> None:
        """Note how much of an input that is elsewhere was copied; `n_total` is 0 when not known."""
        self._say(Progress("fetch", n_bytes, n_total, name=name))

    def scanned(self, n_bytes: int, n_total: int) -> None:
        """Note how many more bytes of input were scanned."""
        self._n_bytes += n_bytes
        self._say(Progress("scan", self._n_bytes, n_total))

    def uploaded(self, n_bytes: int, n_total: int) -> None:
        """Note how much of the dataset is at its URL."""
        self._say(Progress("upload", n_bytes, n_total))

    def committing(self) -> None:
        """Say that all parts are built."""
        self._say(Progress("commit", 0, 1))

    def _built(self, n_rows: int, n_tokens: int) -> None:
        self._n_rows += n_rows
        self._n_tokens += n_tokens
        self._say(Progress("build", self._n_rows, self._n_total, self._n_tokens))

    def _say(self, progress: Progress) -> None:
        if self._on_progress:
            self._on_progress(progress)


def _is_much(plan: Plan) -> bool:
    """Whether several workers win: a second one costs half a second of CPU."""
    if plan.options.image_root is not None:
        return plan.n_rows >= MUCH_PICTURES
    n_bytes = sum(scan.row_bytes * scan.n_rows for scan in plan.scans)
    return n_bytes >= (MUCH_BYTES_SLOW if plan.options.engine == REFERENCE else MUCH_BYTES)


def _is_wanted(receipt: Receipt, plan: Plan) -> bool:
    return plan.options.engine != REFERENCE or receipt.engine == REFERENCE


def _refuse_foreign(given: Mapping[str, object], engine: str) -> None:
    """Raise UsageError for an option of an engine that was not chosen."""
    own = {*hints_of(ENGINES[engine].options), *hints_of(BuildOptions)}
    for other, entry in ENGINES.items():
        for name in hints_of(entry.options):
            if name not in own and given.get(name) is not None:
                raise UsageError(
                    f"{flag_name(name)} is given without --engine {other}",
                    fix=f"Add --engine {other}.",
                )
