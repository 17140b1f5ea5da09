"""A plan that was saved in the build folder: to go on with it, and to commit it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from shardkit.builder.folder import alone
from shardkit.builder.options import PackOptions
from shardkit.builder.plan import Plan, PlanShape, inputs_of, plan_of
from shardkit.builder.sealed import seal, unseal
from shardkit.builder.texts import load_texts
from shardkit.errors import BuildConflict, BuildFailed
from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_file, sha256_hex
from shardkit.format.differing import differing
from shardkit.sources import Copies, Inputs, SourceScan, scan, stamp_of

PLAN_NAME = "plan.json"
OnScanned = Callable[[int, int], None]
"""Called with the bytes that were scanned since the last call, and all bytes."""


class SavedPlan(PlanShape, msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """.building/plan.json."""

    identity: dict[str, Any]
    compression: str
    max_rejects: float | None
    rows_per_part: int
    scans: list[SourceScan]
    """With their stamps: inputs that still have them are not scanned again."""
    tokenizer_files: dict[str, str]
    """sha256 of each file that the commit copies from beside this one."""


def open_plan(
    inputs: list[str | Path],
    options: PackOptions,
    folder: Path,
    on_bytes: OnScanned | None = None,
    anew: str = "--overwrite",
    copies: Copies | None = None,
) -> tuple[Plan, SavedPlan]:
    """The plan for a folder: continued when one was begun there, else made and saved.

    One process at a time plans; the others wait, and find it made. `anew`: the option that throws
    the begun plan away; `copies`: where inputs from elsewhere are copied to. Raises BuildConflict,
    naming what changed, when the saved one is of other inputs or options.
    """
    with alone(folder):
        return _open(inputs, options, folder, on_bytes, anew, copies or Copies(folder))


def _open(
    inputs: list[str | Path],
    options: PackOptions,
    folder: Path,
    on_bytes: OnScanned | None,
    anew: str,
    copies: Copies,
) -> tuple[Plan, SavedPlan]:
    saved = load_plan(folder)
    texts = load_texts(options)
    found = inputs_of(inputs, options, copies)
    scans = tuple(_scans(found, saved, folder, on_bytes))
    plan = plan_of(scans, options, texts, folder)
    if saved is not None:
        refuse_changed(saved, plan, folder, anew)
    saved_now = SavedPlan(
        identity=plan.identity,
        compression=options.compression,
        max_rejects=options.max_rejects,
        rows_per_part=plan.rows_per_part,
        scans=list(plan.scans),
        tokenizer_files={name: sha256_hex(data) for name, data in texts.tokenizer.files().items()},
    )
    if saved_now != saved or not _is_tokenizer_whole(saved_now, folder):
        _save(saved_now, texts.tokenizer.files(), folder)
    return plan, saved_now


def refuse_changed(saved: SavedPlan, plan: Plan, folder: Path, anew: str) -> None:
    """Raise BuildConflict when the plan is not the one that was begun in this folder."""
    lines = differing(saved.identity, plan.identity)
    if saved.compression != plan.options.compression:
        lines.append(f"compression: {saved.compression} before, {plan.options.compression} now")
    if lines:
        raise BuildConflict(
            "this folder was begun with other inputs or options: " + "; ".join(lines),
            where=str(folder.parent),
            fix=f"Run with the old inputs and options, or begin anew with {anew}.",
        )


def _scans(
    found: Inputs, saved: SavedPlan | None, folder: Path, on_bytes: OnScanned | None
) -> list[SourceScan]:
    scans = []
    total = sum(path.stat().st_size for path in found.paths if path.is_file())
    told = None if on_bytes is None else partial(_tell, on_bytes, total)
    for number, (path, name) in enumerate(zip(found.paths, found.names, strict=True)):
        old = saved.scans[number] if saved and number < len(saved.scans) else None
        if old is None or not _is_still(old, path, name):
            old = scan(path, name=name, spool=folder / f"source-{number:05d}", progress=told)
        elif told:
            told(old.n_bytes)
        scans.append(old)
    return scans


def _tell(on_bytes: OnScanned, total: int, n_bytes: int) -> None:
    on_bytes(n_bytes, total)


def _is_still(one: SourceScan, path: Path, name: str) -> bool:
    """Whether a scan is of this input as it is now, and its files in the spool are there."""
    if (one.path, one.name) != (str(path), name) or not one.stamp or one.stamp != stamp_of(path):
        return False
    if one.borders is None:
        return True
    borders = Path(one.borders)
    return (
        borders.is_file() and borders.stat().st_size == 16 * one.n_rows and Path(one.data).exists()
    )


def _save(plan: SavedPlan, tokenizer_files: dict[str, bytes], folder: Path) -> None:
    """Write plan.json, and beside it the tokenizer that the commit will copy."""
    place = folder / "tokenizer"
    place.mkdir(exist_ok=True)
    for name, data in tokenizer_files.items():
        with appear(place / name) as file:
            file.write(data)
    seal(plan, folder / PLAN_NAME)


def load_plan(folder: Path) -> SavedPlan | None:
    """The saved plan, when there is a readable one."""
    return unseal(folder / PLAN_NAME, SavedPlan)


def tokenizer_files(plan: SavedPlan, folder: Path) -> dict[str, bytes]:
    """The tokenizer's files, as they were when the plan was made; raises BuildFailed."""
    if not _is_tokenizer_whole(plan, folder):
        raise BuildFailed(
            "the tokenizer that lies with the plan was damaged",
            where=str(folder / "tokenizer"),
            fix="Run the pack again, without --part: it keeps the parts that are built.",
        )
    return {name: (folder / "tokenizer" / name).read_bytes() for name in plan.tokenizer_files}


def _is_tokenizer_whole(plan: SavedPlan, folder: Path) -> bool:
    files = {folder / "tokenizer" / name: sha256 for name, sha256 in plan.tokenizer_files.items()}
    return all(path.is_file() and sha256_file(path) == sha256 for path, sha256 in files.items())
