"""A plan that was saved in the build folder: to go on with it, and to commit it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from shardkit.builder.folder import PLAN_NAME, alone
from shardkit.builder.options import PackOptions
from shardkit.builder.plan import Plan, PlanShape, inputs_of, plan_of, provisional_key, sources_of
from shardkit.builder.scanning import Scanner
from shardkit.builder.sealed import seal, unseal
from shardkit.builder.texts import load_texts
from shardkit.errors import BuildConflict, BuildFailed
from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_file, sha256_hex
from shardkit.format.differing import differing
from shardkit.sources import Copies, Inputs, SourceScan, are_whole, stamp_of


class SavedPlan(PlanShape, msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What `.building/plan.json` holds."""

    identity: dict[str, Any]
    compression: str
    max_rejects: float | None
    rows_per_part: int
    scans: list[SourceScan]
    """The scans with their stamps: inputs that still have these are not scanned again."""
    tokenizer_files: dict[str, str]
    """The sha256 of each tokenizer file beside the plan, which the commit copies, by name."""
    begun_as: str | None = None


def open_plan(
    inputs: list[str | Path],
    options: PackOptions,
    folder: Path,
    scanner: Scanner,
    anew: str = "--overwrite",
    *,
    copies: Copies | None = None,
    digests_later: bool = False,
) -> tuple[Plan, SavedPlan]:
    """The plan for a folder: continued when one was begun there, else made and saved.

    One process at a time plans; the others wait, and find it made. `anew`: the option that throws
    the begun plan away; `copies`: where inputs from elsewhere are copied to. `digests_later`: a
    plan that is made now may lack digests, which the scanner finds meanwhile; `settled` gives the
    plan with them. Raises BuildConflict, naming what changed, when the saved one is of other
    inputs or options.
    """
    with alone(folder):
        return _open(
            inputs, options, folder, scanner, anew, copies or Copies(folder), digests_later
        )


def _open(
    inputs: list[str | Path],
    options: PackOptions,
    folder: Path,
    scanner: Scanner,
    anew: str,
    copies: Copies,
    digests_later: bool,
) -> tuple[Plan, SavedPlan]:
    saved = load_plan(folder)
    texts = load_texts(options)
    found = inputs_of(inputs, options, copies)
    scans = _scans(found, saved, folder, scanner)
    scanner.begin_digests(scans)
    if saved is not None or not digests_later:
        scans = scanner.digests()
    plan = plan_of(tuple(scans), options, texts, folder)
    if saved is not None:
        refuse_changed(saved, plan, folder, anew)
        plan = replace(plan, begun_as=saved.begun_as)
    elif not all(scan.sha256 for scan in scans):
        plan = replace(plan, begun_as=provisional_key(plan))
    files = texts.tokenizer.files()
    saved_now = SavedPlan(
        identity=plan.identity,
        compression=options.compression,
        max_rejects=options.max_rejects,
        rows_per_part=plan.rows_per_part,
        scans=list(plan.scans),
        tokenizer_files={name: sha256_hex(data) for name, data in files.items()},
        begun_as=plan.begun_as,
    )
    if saved_now != saved or not _is_tokenizer_whole(saved_now, folder):
        _save(saved_now, files, folder)
    return plan, saved_now


def settled(plan: Plan, saved: SavedPlan, folder: Path, scanner: Scanner) -> tuple[Plan, SavedPlan]:
    """A plan that may lack digests, with them, and saved so."""
    if all(scan.sha256 for scan in plan.scans):
        return plan, saved
    found = {one.path: one.sha256 for one in scanner.digests()}
    scans = tuple(replace(one, sha256=found[one.path]) for one in plan.scans)
    identity = {**plan.identity, "sources": sources_of(scans)}
    saved = msgspec.structs.replace(saved, identity=identity, scans=list(scans))
    seal(saved, folder / PLAN_NAME)
    return replace(plan, scans=scans, identity=identity), saved


def refuse_changed(saved: SavedPlan, plan: Plan, folder: Path, anew: str) -> None:
    """Raise BuildConflict when the plan is not the one that was begun in this folder."""
    lines = differing(_with_digests(saved, plan), plan.identity)
    if saved.compression != plan.options.compression:
        lines.append(f"compression: {saved.compression} before, {plan.options.compression} now")
    if lines:
        raise BuildConflict(
            "this folder was begun with other inputs or options: " + "; ".join(lines),
            where=str(folder.parent),
            fix=f"Run with the old inputs and options, or begin anew with {anew}.",
        )


def _with_digests(saved: SavedPlan, plan: Plan) -> dict[str, Any]:
    """The identity of a plan that was left before its digests were known; files tell them now.

    A file that has another stamp by now keeps none, and so is another one.
    """
    now = {scan.path: scan for scan in plan.scans}
    scans = [
        now[one.path] if not one.sha256 and one.path in now and now[one.path].stamp == one.stamp
        else one
        for one in saved.scans
    ]  # fmt: skip
    return {**saved.identity, "sources": sources_of(scans)}


def _scans(
    found: Inputs, saved: SavedPlan | None, folder: Path, scanner: Scanner
) -> list[SourceScan]:
    scanner.n_bytes = sum(path.stat().st_size for path in found.paths if path.is_file())
    known: dict[int, SourceScan] = {}
    wanted: list[tuple[Path, str, Path]] = []
    for number, (path, name) in enumerate(zip(found.paths, found.names, strict=True)):
        old = saved.scans[number] if saved and number < len(saved.scans) else None
        if old is not None and _is_still(old, path, name):
            known[number] = old
            scanner.known(old)
        else:
            wanted.append((path, name, folder / f"source-{number:05d}"))
    made = iter(scanner.scan(wanted))
    return [known[n] if n in known else next(made) for n in range(len(found.paths))]


def _is_still(one: SourceScan, path: Path, name: str) -> bool:
    """Whether a scan is of this input as it is now, and its files in the spool are whole."""
    if (one.path, one.name) != (str(path), name) or not one.stamp or one.stamp != stamp_of(path):
        return False
    return are_whole(one.spool)


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
