"""Parts built by different tasks become one dataset; datasets of one recipe become one."""

from __future__ import annotations

from pathlib import Path

import msgspec

from shardkit.builder.commit import commit, is_committing
from shardkit.builder.folder import building_folder, locked
from shardkit.builder.outline import load_outline
from shardkit.builder.part import Receipt, receipt_path
from shardkit.builder.resume import load_receipt
from shardkit.errors import BuildConflict, BuildFailed
from shardkit.format.layout import MANIFEST_NAME
from shardkit.format.manifest import Manifest, load_manifest

_SHOWN = 8


def merge(out: str | Path) -> Manifest:
    """Commit the parts that `pack(..., part=(I, N))` built in this folder.

    Raises BuildConflict when nothing was begun there, BuildFailed, naming the parts and the
    shares to run again, when some are missing.
    """
    out = Path(out)
    folder = building_folder(out)
    outline = load_outline(folder)
    if outline is None:
        if (out / MANIFEST_NAME).is_file():
            return load_manifest(out)
        raise BuildConflict(
            "no parts were built here",
            where=str(out),
            fix="Build them first: shardkit pack ... --out DIR --part I/N, for every I.",
        )
    with locked(folder):
        receipts: list[Receipt] = []
        missing = []
        for part in range(outline.n_parts):
            receipt = load_receipt(outline.fingerprint, folder, part)
            if receipt is None and is_committing(folder, outline.fingerprint):
                data = receipt_path(folder, part).read_bytes()
                receipt = msgspec.json.decode(data, type=Receipt)
            if receipt is None:
                missing.append(part)
            else:
                receipts.append(receipt)
        if missing:
            some = ", ".join(map(str, missing[:_SHOWN])) + (
                ", ..." if len(missing) > _SHOWN else ""
            )
            raise BuildFailed(
                f"{len(missing)} of {outline.n_parts} parts are not built: {some}",
                where=str(out),
                fix="Run the tasks that did not end again (part P belongs to share P mod N + 1), "
                "or the whole pack without --part: it builds what is missing.",
            )
        return commit(outline, receipts, out, folder)
