"""Who builds the parts that are not done yet, and how far that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from shardkit.builder.engines import ENGINES
from shardkit.builder.job import Job
from shardkit.builder.plan import Plan
from shardkit.builder.receipt import Receipt, untrusted
from shardkit.builder.resume import done_receipt
from shardkit.errors import UsageError
from shardkit.tokens import REFERENCE

BuildEngine = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pack is. `scan` counts bytes of input, `build` counts rows."""

    stage: Literal["scan", "build", "commit"]
    n_done: int
    n_total: int
    n_tokens: int = 0


OnProgress = Callable[[Progress], None]


class Crew:
    """Builds parts with one engine; tells the caller what is done, all workers added up.

    Raises UsageError for an engine that is not in ENGINES, and for no workers.
    """

    def __init__(
        self,
        workers: int,
        engine: BuildEngine,
        ray_address: str | None,
        on_progress: OnProgress | None,
    ) -> None:
        if workers < 1:
            raise UsageError(
                "workers is out of range",
                expected="1 or more",
                found=str(workers),
                fix="Correct it.",
            )
        if engine not in ENGINES:
            raise UsageError(
                f"there is no build engine {engine!r}",
                expected=", ".join(ENGINES),
                fix="Choose one of these with --engine.",
            )
        if ray_address is not None and engine != "ray":
            raise UsageError("--ray-address is given without --engine ray", fix="Add --engine ray.")
        self._workers, self._engine, self._ray_address = workers, engine, ray_address
        self._on_progress = on_progress
        self._n_bytes = self._n_rows = self._n_tokens = self._n_total = 0

    def build(self, plan: Plan, folder: Path, parts: Sequence[int]) -> list[Receipt]:
        """Build the parts that are not done; the receipts of all, in order.

        What a fast tokenizer engine made is built again without it when the engine was found
        wrong on the way, or when `hf` is asked for now.
        """
        self._n_total = sum(last - first for first, last in map(plan.part_bounds, parts))
        receipts: dict[int, Receipt] = {}
        for part in parts:
            receipt = done_receipt(plan.fingerprint, folder, part)
            if receipt is not None and _is_wanted(receipt, plan):
                receipts[part] = receipt
        if receipts:
            done = receipts.values()
            self._built(sum(r.n_rows for r in done), sum(r.n_tokens for r in done))
        self._run(plan, folder, [part for part in parts if part not in receipts], receipts)
        again = untrusted(receipts.values())
        for part in again:
            self._built(-receipts[part].n_rows, -receipts[part].n_tokens)
        careful = replace(plan, options=replace(plan.options, engine=REFERENCE))
        self._run(careful, folder, again, receipts)
        return [receipts[part] for part in parts]

    def _run(
        self, plan: Plan, folder: Path, parts: list[int], receipts: dict[int, Receipt]
    ) -> None:
        if parts:
            job = Job(plan, folder, parts, self._workers, self._built, self._ray_address)
            for receipt in ENGINES[self._engine](job):
                receipts[receipt.part] = receipt

    def scanned(self, n_bytes: int) -> None:
        """So many more bytes of input were scanned."""
        self._n_bytes += n_bytes
        self._say(Progress("scan", self._n_bytes, 0))

    def committing(self) -> None:
        """All parts are built."""
        self._say(Progress("commit", 0, 1))

    def _built(self, n_rows: int, n_tokens: int) -> None:
        self._n_rows += n_rows
        self._n_tokens += n_tokens
        self._say(Progress("build", self._n_rows, self._n_total, self._n_tokens))

    def _say(self, progress: Progress) -> None:
        if self._on_progress:
            self._on_progress(progress)


def _is_wanted(receipt: Receipt, plan: Plan) -> bool:
    return plan.options.engine != REFERENCE or receipt.engine == REFERENCE
