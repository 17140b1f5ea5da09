"""Parts built by different tasks become one dataset; datasets of one recipe become one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from shardkit.builder.commit import commit, write_tokenizer
from shardkit.builder.folder import building_folder, clean, locked, prepared
from shardkit.builder.job import disk_errors
from shardkit.builder.join import join, join_rejects, rejects_of
from shardkit.builder.options import MaxRejects
from shardkit.builder.receipt import Receipt, done_receipt, untrusted
from shardkit.builder.saved_plan import load_plan
from shardkit.builder.whole import Second, is_whole, write_sections
from shardkit.dataset import load_manifest
from shardkit.errors import BuildConflict, BuildFailed, UsageError
from shardkit.format.atomic import appear, link_or_copy, sync_folder
from shardkit.format.layout import MANIFEST_NAME, TOKENIZER_FOLDER
from shardkit.format.manifest import Manifest
from shardkit.format.relations import refuse_contradictions
from shardkit.format.shard import Shard
from shardkit.options import FilePath, FilePaths, checked
from shardkit.storage.open import path_here

_SHOWN = 8
OnShard = Callable[[int, int], None]
"""Called with (shards done, all shards)."""


@checked
def merge(out: FilePath, *, max_rejects: MaxRejects | None = None) -> Manifest:
    """Commit the parts that `pack(..., part=(I, N))` built in this folder.

    `max_rejects`: instead of the one that the parts were built with.
    Raises BuildConflict when nothing was begun there, BuildFailed, naming the parts and the
    shares to run again, when some are missing, TooManyRejects, and BadInput when no row is kept.
    """
    out = path_here(out, "the parts to merge")
    folder = building_folder(out)
    saved = load_plan(folder)
    if saved is None:
        if (out / MANIFEST_NAME).is_file():
            return load_manifest(out)
        raise BuildConflict(
            "no parts were built here",
            where=str(out),
            fix="Build them first: shardkit pack ... --out DIR --part I/N, for every I.",
        )
    if max_rejects is not None:
        saved = msgspec.structs.replace(saved, max_rejects=max_rejects)
    with disk_errors(out), locked(folder):
        found = {part: done_receipt(saved.key, folder, part) for part in range(saved.n_parts)}
        receipts = [receipt for receipt in found.values() if receipt is not None]
        missing = [part for part, receipt in found.items() if receipt is None]
        if missing:
            some = ", ".join(map(str, missing[:_SHOWN])) + (
                ", ..." if len(missing) > _SHOWN else ""
            )
            raise BuildFailed(
                f"{len(missing)} of {saved.n_parts} parts are not built: {some}",
                where=str(out),
                fix="Run the tasks that did not end again (part P belongs to share P mod N + 1), "
                "or the whole pack without --part: it builds what is missing.",
            )
        refuse_untrusted(receipts, out)
        whole = None
        if is_whole(saved):
            whole = write_sections(Second.of(saved, saved.compression, receipts, folder), 1)
        return commit(saved, receipts, out, folder, whole=whole)


def refuse_untrusted(receipts: list[Receipt], out: Path) -> None:
    """Raise BuildFailed when parts were made by an engine that another part found wrong."""
    parts = untrusted(receipts)
    if parts:
        raise BuildFailed(
            f"{len(parts)} parts hold ids of a tokenizer engine that another part found wrong",
            where=str(out),
            found=next((one.difference for one in receipts if one.difference), None),
            fix="Run the pack again with --tokenizer-engine hf, without --part: it builds those "
            "parts anew.",
        )


@checked
def merge_datasets(
    datasets: FilePaths,
    out: FilePath,
    *,
    copy: bool = False,
    on_shard: OnShard | None = None,
) -> Manifest:
    """Make one dataset of several finished ones of one recipe; they stay as they are.

    The shards get new numbers and are hard links, which take no space, where the file system
    allows that and unless `copy`. Indexes are checked, samples are not (`verify` does that). A
    killed merge continues when it is called again. Raises UsageError for fewer than two,
    BuildConflict, naming what differs, BadInput when a source file is in two of them,
    BadManifest, CorruptShard.
    """
    given = [datasets] if isinstance(datasets, str | Path) else datasets
    roots = [path_here(path, "a dataset to merge") for path in given]
    out = path_here(out, "the output of a merge")
    if len(roots) < 2:
        raise UsageError(
            "nothing to merge", expected="two datasets or more", fix="Name them: DATASET DATASET."
        )
    manifests = [load_manifest(root) for root in roots]
    for manifest, root in zip(manifests, roots, strict=True):
        refuse_contradictions(manifest, root)
    joined, names = join(manifests, [str(root) for root in roots])
    with disk_errors(out), prepared(out) as folder, locked(folder):
        if (out / MANIFEST_NAME).is_file():
            clean(folder)
            return _same(load_manifest(out), joined, out)
        entries = iter(joined.shards)
        for root, manifest in zip(roots, manifests, strict=True):
            for old in manifest.shards:
                new = next(entries)
                Shard.open(root / old.name, expected=old).close()
                link_or_copy(root / old.name, out / new.name, copy=copy)
                if on_shard:
                    on_shard(int(new.name.split("-")[1].split(".")[0]) + 1, len(joined.shards))
        files = [rejects_of(m, root) for m, root in zip(manifests, roots, strict=True)]
        manifest = msgspec.structs.replace(
            joined,
            rejects=join_rejects(files, names, out, len(joined.builds)),
            tokenizer_files=write_tokenizer(_tokenizer_of(manifests[0], roots[0]), out),
        )
        sync_folder(out)
        with appear(out / MANIFEST_NAME) as file:
            file.write(manifest.to_bytes())
        clean(folder)
    return manifest


def _same(found: Manifest, joined: Manifest, out: Path) -> Manifest:
    """What was merged before, when it is the same; another dataset is never touched."""
    if (found.fingerprint, found.content) == (joined.fingerprint, joined.content):
        return found
    raise BuildConflict(
        "there is another dataset already",
        where=str(out),
        fix="Give a new folder with --out. To add files to a dataset: shardkit append.",
    )


def _tokenizer_of(manifest: Manifest, root: Path) -> dict[str, bytes]:
    folder = root / TOKENIZER_FOLDER
    return {entry.name: (folder / entry.name).read_bytes() for entry in manifest.tokenizer_files}
