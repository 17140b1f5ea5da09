"""Inputs become a dataset: plan, parts, commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

from shardkit.builder.commit import commit, is_committing
from shardkit.builder.engines import run_here, run_pool
from shardkit.builder.folder import building_folder, locked, prepare
from shardkit.builder.options import PackArguments, PackOptions
from shardkit.builder.part import Receipt, receipt_path
from shardkit.builder.plan import Plan, differing
from shardkit.builder.resume import load_receipt, open_plan
from shardkit.errors import BuildConflict, UsageError
from shardkit.format.layout import MANIFEST_NAME
from shardkit.format.manifest import Manifest, load_manifest

BuildEngine = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pack is. `scan` counts bytes of input, `build` counts rows."""

    stage: Literal["scan", "build", "commit"]
    n_done: int
    n_total: int
    n_tokens: int = 0


OnProgress = Callable[[Progress], None]


def pack(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    build_engine: BuildEngine = "local",
    ray_address: str | None = None,
    part: tuple[int, int] | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[PackArguments],
) -> Manifest | None:
    """Turn raw files into a dataset of tokenised shards with a manifest.

    `inputs`: files, globs or folders. `out`: a new or empty folder, or one that an earlier, killed
    run with the same inputs and options began: it is continued. `workers`: processes; the result
    is the same for any number. `part=(I, N)`: build only every N-th part, from the I-th (from 1);
    returns None, and `merge` commits when all are built. `options`: the fields of PackOptions
    (`tokenizer`, `template`, `max_length`, `packing`, ...).

    Returns the manifest. Raises UsageError, BadInput, TokenizerError, TemplateError,
    BuildConflict, TooManyRejects, BuildFailed.
    """
    chosen = PackOptions(**options)
    files = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    out = Path(out)
    report = _Reporter(on_progress)
    finished = _finished(out) if not overwrite else None
    if workers < 1:
        raise UsageError(
            "workers is out of range", expected="1 or more", found=str(workers), fix="Correct it."
        )
    folder = prepare(out, overwrite=overwrite)
    with locked(folder, shared=part is not None):
        plan, outline = open_plan(files, chosen, folder, report.scanned)
        if finished is not None:
            return _refuse_or_keep(finished, plan, out)
        run = _Run(plan, folder, workers, build_engine, ray_address, report.built)
        if part is not None:
            run.build(_share(plan.n_parts, part))
            return None
        receipts = run.build(range(plan.n_parts))
        report.say(Progress("commit", 0, 1))
        return commit(outline, receipts, out, folder)


@dataclass(frozen=True, slots=True)
class _Run:
    plan: Plan
    folder: Path
    workers: int
    engine: BuildEngine
    ray_address: str | None
    on_rows: Callable[[int, int, int], None]

    def build(self, parts: Sequence[int]) -> list[Receipt]:
        """Build the parts that are not done; the receipts of all, in order."""
        plan = self.plan
        receipts: dict[int, Receipt] = {}
        for part in parts:
            receipt = self._done(part)
            if receipt is not None:
                receipts[part] = receipt
                n_tokens = sum(entry.n_tokens for entry in receipt.shards)
                self.on_rows(receipt.n_rows, n_tokens, plan.n_rows)
        missing = [part for part in parts if part not in receipts]
        for receipt in self._run(missing):
            receipts[receipt.part] = receipt
        return [receipts[part] for part in parts]

    def _done(self, part: int) -> Receipt | None:
        if is_committing(self.folder, self.plan.fingerprint):
            import msgspec

            return msgspec.json.decode(receipt_path(self.folder, part).read_bytes(), type=Receipt)
        return load_receipt(self.plan.fingerprint, self.folder, part)

    def _run(self, parts: Sequence[int]) -> Iterator[Receipt]:
        def on_rows(n_rows: int, n_tokens: int) -> None:
            self.on_rows(n_rows, n_tokens, self.plan.n_rows)

        if not parts:
            return iter(())
        if self.engine == "ray":
            from shardkit.builder.ray_engine import run_ray

            return run_ray(self.plan, self.folder, parts, self.workers, on_rows, self.ray_address)
        if self.workers == 1 or len(parts) == 1:
            return run_here(self.plan, self.folder, parts, on_rows)
        return run_pool(self.plan, self.folder, parts, min(self.workers, len(parts)), on_rows)


class _Reporter:
    """Adds up what is done and tells the caller."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._n_bytes = self._n_rows = self._n_tokens = 0

    def say(self, progress: Progress) -> None:
        if self._on_progress:
            self._on_progress(progress)

    def scanned(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        self.say(Progress("scan", self._n_bytes, 0))

    def built(self, n_rows: int, n_tokens: int, n_total: int) -> None:
        self._n_rows += n_rows
        self._n_tokens += n_tokens
        self.say(Progress("build", self._n_rows, n_total, self._n_tokens))


def _share(n_parts: int, part: tuple[int, int]) -> range:
    number, n = part
    if not 1 <= number <= n:
        raise UsageError(
            "--part is out of range",
            expected="I/N with I from 1 to N",
            found=f"{number}/{n}",
            fix="In a Slurm array of N tasks, I is SLURM_ARRAY_TASK_ID counted from 1.",
        )
    return range(number - 1, n_parts, n)


def _finished(out: Path) -> Manifest | None:
    return load_manifest(out) if (out / MANIFEST_NAME).is_file() else None


def _refuse_or_keep(finished: Manifest, plan: Plan, out: Path) -> Manifest:
    """A finished dataset of the same identity is the result; another one is never touched."""
    import shutil

    shutil.rmtree(building_folder(out), ignore_errors=True)
    if finished.fingerprint == plan.fingerprint:
        return finished
    raise BuildConflict(
        "there is another dataset already: "
        + "; ".join(differing(finished.identity, plan.identity)),
        where=str(out),
        fix="Give another folder with --out, or replace the dataset with --overwrite.",
    )
