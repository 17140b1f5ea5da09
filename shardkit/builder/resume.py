"""What was planned before, and which parts of it are done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from shardkit.builder.commit import is_committing
from shardkit.builder.folder import alone
from shardkit.builder.options import PackOptions
from shardkit.builder.plan import Plan, differing, plan_of
from shardkit.builder.receipt import Receipt, part_folder, receipt_path
from shardkit.builder.saved_plan import Outline, load_outline, save_outline
from shardkit.errors import BuildConflict
from shardkit.sources import (
    SourceScan,
    expand_inputs,
    names_of,
    scan,
)
from shardkit.tokens import load_template, load_tokenizer


def open_plan(
    inputs: list[str | Path],
    options: PackOptions,
    folder: Path,
    on_bytes: Callable[[int], None] | None = None,
    anew: str = "--overwrite",
) -> tuple[Plan, Outline]:
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
) -> tuple[Plan, Outline]:
    saved = load_outline(folder)
    tokenizer = load_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
    template = load_template(options.template, tokenizer, date=options.date)
    paths = expand_inputs(inputs)
    scans = tuple(_scans(paths, saved, folder, on_bytes))
    plan = plan_of(scans, options, tokenizer, template)
    if saved is not None:
        refuse_changed(saved, plan, folder, anew)
    outline = Outline(
        identity=plan.identity,
        compression=options.compression,
        max_rejects=options.max_rejects,
        rows_per_part=plan.rows_per_part,
        scans=list(scans),
        stamps=[_stamp(path) for path in paths],
    )
    if outline != saved:
        save_outline(outline, tokenizer.files(), folder)
    return plan, outline


def refuse_changed(saved: Outline, plan: Plan, folder: Path, anew: str) -> None:
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


def done_receipt(fingerprint: str, folder: Path, part: int) -> Receipt | None:
    """The receipt of a part that is done, also when a commit has moved its shards away already."""
    if is_committing(folder, fingerprint):
        return msgspec.json.decode(receipt_path(folder, part).read_bytes(), type=Receipt)
    return load_receipt(fingerprint, folder, part)


def load_receipt(fingerprint: str, folder: Path, part: int) -> Receipt | None:
    """The receipt of a part that is done and whose shards are there; None when it is not."""
    try:
        receipt = msgspec.json.decode(receipt_path(folder, part).read_bytes(), type=Receipt)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    place = part_folder(folder, part)
    sizes = [(place / entry.name, entry.n_bytes) for entry in receipt.shards]
    is_there = all(path.is_file() and path.stat().st_size == n for path, n in sizes)
    return receipt if receipt.fingerprint == fingerprint and is_there else None


def _scans(
    paths: list[Path],
    saved: Outline | None,
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
