"""All parts become one dataset, which is visible when its manifest is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from shardkit.builder.join import join, join_rejects, rejects_of
from shardkit.builder.ledger import Map, collect_checks, in_turn, over_limit
from shardkit.builder.receipt import Receipt, SourceCount, mark_committing, part_folder
from shardkit.builder.saved_plan import SavedPlan, tokenizer_files
from shardkit.builder.whole import Sections
from shardkit.conversation import Reason
from shardkit.errors import BadInput, BuildFailed, TooManyRejects
from shardkit.format.atomic import appear, sync_folder
from shardkit.format.canonical import sha256_file, sha256_hex
from shardkit.format.codec import parse_compression
from shardkit.format.layout import MANIFEST_NAME, REJECTS_NAME, TOKENIZER_FOLDER, shard_name
from shardkit.format.manifest import (
    FileEntry,
    Manifest,
    PartEntry,
    ShardEntry,
    SourceEntry,
    content_of,
)
from shardkit.version import __version__


def commit(
    plan: SavedPlan,
    receipts: Sequence[Receipt],
    out: Path,
    folder: Path,
    onto: Manifest | None = None,
    *,
    whole: Sections | None = None,
    mapped: Map = in_turn,
) -> Manifest:
    """Give the shards their numbers and write everything else, the manifest last.

    `onto`: the dataset that is in `out` already; the new shards come after its own. `mapped`: who
    does what can be done side by side. `whole`: packs of all parts together, whose shards are taken
    in place of the parts' own. A kill at any
    moment leaves what was there before (nothing, or that dataset, whole) and a commit that can be
    run again, or the whole result. Raises BuildFailed when the account does not add up,
    TooManyRejects.
    """
    check_account(plan, receipts)
    made = receipts
    if whole is not None:
        check_placed(receipts, whole.receipts)
        made = whole.receipts
    listed = (folder if onto else out) / REJECTS_NAME
    _write_rejects(receipts, folder, listed)
    check_rejects(plan, receipts, listed)
    piece = _piece(plan, receipts, whole, folder, mapped)
    olds = [onto] if onto else []
    manifest, names = join([*olds, piece], [*(str(out) for _ in olds), "the new input"])
    place, key = (folder, plan.key) if whole is None else (whole.job.folder, whole.job.key)
    mark_committing(place, key)
    _move_shards(made, manifest.shards[-len(piece.shards) :], place, out)
    if onto is None:
        files = write_tokenizer(tokenizer_files(plan, folder), out)
        rejects = FileEntry(
            name=REJECTS_NAME, sha256=sha256_file(listed), n_bytes=listed.stat().st_size
        )
    else:
        files = onto.tokenizer_files
        rejects = join_rejects([rejects_of(onto, out), listed], names, out, len(manifest.builds))
    manifest = msgspec.structs.replace(manifest, tokenizer_files=files, rejects=rejects)
    with appear(out / MANIFEST_NAME) as file:
        file.write(manifest.to_bytes())
    shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _piece(
    plan: SavedPlan,
    receipts: Sequence[Receipt],
    whole: Sections | None,
    folder: Path,
    mapped: Map,
) -> Manifest:
    """The manifest of these parts alone, without the files beside the shards."""
    entries, parts = _number(plan, receipts if whole is None else whole.receipts)
    if whole is not None:
        parts = [PartEntry(first_row=0, n_rows=plan.n_rows, first_shard=0, n_shards=len(entries))]
    return Manifest(
        fingerprint=plan.fingerprint,
        content=content_of(entries),
        identity=plan.identity,
        writer=f"shardkit {__version__}",
        engine=_engine(receipts),
        compression=plan.compression,
        sources=source_entries(plan, receipts),
        shards=entries,
        parts=parts,
        checks=collect_checks(receipts, [scan.name for scan in plan.scans], folder, mapped),
    )


def _engine(receipts: Sequence[Receipt]) -> str:
    """What made the ids, and why a fast engine was given up."""
    names = ", ".join(sorted({receipt.engine for receipt in receipts}))
    why = next((receipt.difference for receipt in receipts if receipt.difference), None)
    return f"{names} ({why})" if why else names


def check_account(plan: SavedPlan, receipts: Sequence[Receipt]) -> None:
    """Check that every row is in the ledger once, every kept one in a shard; raises BuildFailed."""
    for receipt in receipts:
        first, last = plan.part_bounds(receipt.part)
        n_rejected = sum(sum(count.rejected.values()) for count in receipt.sources.values())
        n_kept = sum(count.n_kept for count in receipt.sources.values())
        kept_in_shards = sum(entry.n_samples for entry in receipt.shards)
        is_right = (
            receipt.n_rows == last - first == n_kept + n_rejected
            and receipt.n_placed == receipt.n_samples
            and (plan.is_packed or kept_in_shards == receipt.n_samples)
        )
        if not is_right:
            raise BuildFailed(
                "rows are unaccounted for: this is a bug in shardkit",
                where=f"part {receipt.part}, rows {first} to {last - 1}",
                expected=f"{last - first} rows",
                found=f"{n_kept} kept, {n_rejected} rejected, {receipt.n_placed} of "
                f"{receipt.n_samples} samples placed in shards",
                fix="Please report it with the options that you used.",
            )


def check_placed(receipts: Sequence[Receipt], sections: Sequence[Receipt]) -> None:
    """Check that every kept row begins in one pack of the second pass; raises BuildFailed."""
    expected = sum(receipt.n_samples for receipt in receipts)
    found = sum(receipt.n_placed for receipt in sections)
    if found != expected:
        raise BuildFailed(
            "rows are unaccounted for in the packs of the whole input: this is a bug in shardkit",
            expected=f"{expected} samples",
            found=str(found),
            fix="Please report it with the options that you used.",
        )


_NOT_FOUND = (Reason.IMAGE_MISSING, Reason.IMAGE_OUTSIDE_ROOT)
"""Reasons of rows whose pictures were not found. Where most rows have none, a share of all rows
would hide a wrong --image-root, so these are compared with the pictures that were kept."""


_LOOK_AT = {
    Reason.BAD_TOKENS: "--tokenizer",
    Reason.NO_SUPERVISED_TOKENS: "--max-length, and switches of the loss in the rows",
    Reason.TOO_LONG: "--max-length",
    Reason.UNSUPPORTED_FIELD: "--ignore-field",
    Reason.UNKNOWN_ROLE: "--template",
    Reason.DUPLICATE: "the inputs",
    Reason.PLACEHOLDER_MISMATCH: "--image-root and --format",
}
"""What to look at first, by the reason for which most rows were rejected."""


def _advice(reasons: Mapping[str, int]) -> str:
    """What to look at where the most rows were rejected for this reason."""
    reason = Reason(max(reasons, key=lambda one: reasons[one], default=Reason.BAD_RECORD))
    by_name = {"image": "--image-root", "template": "--template"}
    option = by_name.get(reason.split("_")[0], "--format")
    return f"Look at {_LOOK_AT.get(reason, option)}"


def check_rejects(plan: SavedPlan, receipts: Sequence[Receipt], listed_in: Path) -> None:
    """Refuse a build that rejects more rows than allowed, of all or of those with pictures, or all.

    `listed_in`: the list of rejected rows, written by then. Raises BadInput, TooManyRejects.
    """
    reasons: dict[str, int] = {}
    for receipt in receipts:
        for count in receipt.sources.values():
            for reason, n in count.rejected.items():
                reasons[reason] = reasons.get(reason, 0) + n
    n_rejected, n_rows = sum(reasons.values()), plan.n_rows
    listed = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
    found = f"{n_rejected} of {n_rows}: {listed or 'no rows'}"
    if n_rejected:
        found += f"; the first: {_first_reject(listed_in)}"
    if n_rejected == n_rows:
        raise BadInput(
            "no row could be kept",
            found=found,
            fix=f"Each row is listed in {listed_in}. {_advice(reasons)}, with --dry-run.",
        )
    limit = plan.max_rejects
    allowed = over_limit(n_rejected, n_rows, limit)
    if allowed:
        raise TooManyRejects(
            "more rows were rejected than --max-rejects allows",
            expected=allowed,
            found=found,
            fix=f"See {listed_in}; then mend the rows, or run again with a larger "
            "--max-rejects (what is built is kept, and committed at once).",
        )
    n_kept = sum(entry.n_images for receipt in receipts for entry in receipt.shards)
    n_lost = sum(reasons.get(reason, 0) for reason in _NOT_FOUND)
    if limit is not None and limit < 1 and n_lost > limit * (n_lost + n_kept):
        raise TooManyRejects(
            "most rows with pictures were rejected: their pictures were not found",
            expected=f"at most {limit:.2%} of the rows with pictures",
            found=f"{n_lost} such rows, {n_kept} pictures kept; {found}",
            fix="Check --image-root: the rows' paths begin there. If so many are really lost: "
            f"--max-rejects {n_rejected} (what is built is kept, and committed at once).",
        )


def _first_reject(listed_in: Path) -> str:
    """The first line of the list of rejected rows, in words."""
    with open(listed_in, "rb") as file:
        first = msgspec.json.decode(file.readline())
    text = f"{first['source']} row {first['row']}: {first['reason']}: {first['detail']}"
    return text if len(text) <= 300 else text[:297] + "..."


def _number(
    plan: SavedPlan, receipts: Sequence[Receipt]
) -> tuple[list[ShardEntry], list[PartEntry]]:
    """Entries under their final names, and which part made which."""
    suffix = parse_compression(plan.compression)[0].suffix
    entries: list[ShardEntry] = []
    parts = []
    for receipt in receipts:
        first, last = plan.part_bounds(receipt.part)  # of a section it means nothing
        parts.append(
            PartEntry(
                first_row=first,
                n_rows=last - first,
                first_shard=len(entries),
                n_shards=len(receipt.shards),
            )
        )
        for entry in receipt.shards:
            name = shard_name(len(entries), suffix)
            entries.append(msgspec.structs.replace(entry, name=name))
    return entries, parts


def _move_shards(
    receipts: Sequence[Receipt], entries: Sequence[ShardEntry], folder: Path, out: Path
) -> None:
    """Give all shards of the parts their names in the dataset."""
    number = 0
    for receipt in receipts:
        place = part_folder(folder, receipt.part)
        for entry in receipt.shards:
            _move(place / entry.name, out / entries[number].name, entry.n_bytes)
            number += 1
    sync_folder(out)


def _move(source: Path, target: Path, n_bytes: int) -> None:
    """Rename, or see that an earlier, killed commit has done so."""
    if source.is_file():
        os.replace(source, target)
    elif not target.is_file() or target.stat().st_size != n_bytes:
        raise BuildFailed(
            "a shard that was built is gone",
            where=str(source),
            fix="Begin anew with --overwrite.",
        )


def source_entries(plan: SavedPlan, receipts: Sequence[Receipt]) -> list[SourceEntry]:
    """The ledger: what became of the rows of each source."""
    totals = [SourceCount() for _ in plan.scans]
    for receipt in receipts:
        for number, count in receipt.sources.items():
            total = totals[number]
            total.n_kept += count.n_kept
            total.n_truncated += count.n_truncated
            total.n_cut_tokens += count.n_cut_tokens
            for reason, n in count.rejected.items():
                total.rejected[reason] = total.rejected.get(reason, 0) + n
    return [
        SourceEntry(
            name=scan.name,
            sha256=scan.sha256,
            n_bytes=scan.n_bytes,
            n_rows=scan.n_rows,
            n_kept=total.n_kept,
            rejected=dict(sorted(total.rejected.items())),
            n_truncated=total.n_truncated,
            n_cut_tokens=total.n_cut_tokens,
        )
        for scan, total in zip(plan.scans, totals, strict=True)
    ]


def write_tokenizer(files: dict[str, bytes], out: Path) -> list[FileEntry]:
    """Write the tokenizer's files below the dataset; their entries."""
    (out / TOKENIZER_FOLDER).mkdir(exist_ok=True)
    entries = []
    for name, data in sorted(files.items()):
        with appear(out / TOKENIZER_FOLDER / name) as file:
            file.write(data)
        entries.append(FileEntry(name=name, sha256=sha256_hex(data), n_bytes=len(data)))
    return entries


def _write_rejects(receipts: Sequence[Receipt], folder: Path, target: Path) -> None:
    """Write all rejected rows into one file, in the order of the build."""
    with appear(target) as file:
        for receipt in receipts:
            with open(part_folder(folder, receipt.part) / REJECTS_NAME, "rb") as lines:
                shutil.copyfileobj(lines, file)
