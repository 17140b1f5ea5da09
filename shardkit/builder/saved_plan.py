"""A plan that was saved in the build folder: to go on with it, and to commit it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from shardkit.builder.folder import alone
from shardkit.builder.options import PackOptions
from shardkit.builder.plan import Plan, PlanShape, plan_of
from shardkit.builder.texts import load_texts
from shardkit.errors import BuildConflict
from shardkit.format.atomic import appear
from shardkit.format.differing import differing
from shardkit.sources import SourceScan, expand_inputs, names_of, scan


class SavedPlan(PlanShape, msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """.building/plan.json."""

    identity: dict[str, Any]
    compression: str
    max_rejects: float | None
    rows_per_part: int
    scans: list[SourceScan]
    stamps: list[list[int]]
    """Size and time of change of each input: equal ones are not scanned again."""


def open_plan(
    inputs: list[str | Path],
    options: PackOptions,
    folder: Path,
    on_bytes: Callable[[int], None] | None = None,
    anew: str = "--overwrite",
) -> tuple[Plan, SavedPlan]:
    """The plan for a folder: continued when one was begun there, else made and saved.

    One process at a time plans; the others wait, and find it made. `anew`: the option that throws
    the begun plan away. Raises BuildConflict, naming what changed, when the saved one is of other
    inputs or options.
    """
    with alone(folder):
        return _open(inputs, options, folder, on_bytes, anew)


def _open(
    inputs: list[str | Path],
    options: PackOptions,
    folder: Path,
    on_bytes: Callable[[int], None] | None,
    anew: str,
) -> tuple[Plan, SavedPlan]:
    saved = load_plan(folder)
    texts = load_texts(options)
    paths = expand_inputs(inputs)
    scans = tuple(_scans(paths, saved, folder, on_bytes))
    plan = plan_of(scans, options, texts)
    if saved is not None:
        refuse_changed(saved, plan, folder, anew)
    saved_now = SavedPlan(
        identity=plan.identity,
        compression=options.compression,
        max_rejects=options.max_rejects,
        rows_per_part=plan.rows_per_part,
        scans=list(scans),
        stamps=[_stamp(path) for path in paths],
    )
    if saved_now != saved:
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
    paths: list[Path],
    saved: SavedPlan | None,
    folder: Path,
    on_bytes: Callable[[int], None] | None,
) -> list[SourceScan]:
    known = dict(zip((s.path for s in saved.scans), saved.stamps, strict=True)) if saved else {}
    scans = []
    for number, (path, name) in enumerate(zip(paths, names_of(paths), strict=True)):
        old = None
        if saved and number < len(saved.scans) and known.get(str(path)) == _stamp(path):
            old = saved.scans[number]
        if old is None or old.path != str(path) or not _is_whole(old):
            old = scan(path, name=name, spool=folder / f"source-{number:05d}", progress=on_bytes)
        elif on_bytes:
            on_bytes(old.n_bytes)
        scans.append(old)
    return scans


def _is_whole(one: SourceScan) -> bool:
    """Whether the files that the scan left in the spool are still there."""
    if one.borders is None:
        return True
    borders = Path(one.borders)
    return (
        borders.is_file() and borders.stat().st_size == 16 * one.n_rows and Path(one.data).exists()
    )


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _save(plan: SavedPlan, tokenizer_files: dict[str, bytes], folder: Path) -> None:
    """Write plan.json, and beside it the tokenizer that the commit will copy."""
    place = folder / "tokenizer"
    place.mkdir(exist_ok=True)
    for name, data in tokenizer_files.items():
        with appear(place / name) as file:
            file.write(data)
    with appear(folder / "plan.json") as file:
        file.write(msgspec.json.encode(plan, order="sorted"))


def load_plan(folder: Path) -> SavedPlan | None:
    """The saved plan, when there is a readable one."""
    try:
        return msgspec.json.decode((folder / "plan.json").read_bytes(), type=SavedPlan)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files that `_save` wrote."""
    return {path.name: path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())}
