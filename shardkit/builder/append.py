"""New inputs become new shards of a finished dataset; its own shards are not touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import msgspec

from shardkit.builder.build import BuildRun, OnProgress
from shardkit.builder.build_engines import engine_options
from shardkit.builder.commit import commit
from shardkit.builder.folder import (
    APPENDING,
    PLAN_NAME,
    building_folder,
    clean,
    is_ours,
    locked,
    tidy,
)
from shardkit.builder.job import disk_errors
from shardkit.builder.join import rejects_name
from shardkit.builder.options import (
    AppendOptions,
    PackOptions,
    of_dataset,
)
from shardkit.builder.options.arguments import AppendArguments
from shardkit.builder.plan import Plan
from shardkit.builder.saved_plan import open_plan
from shardkit.builder.texts import texts_again
from shardkit.dataset import load_manifest
from shardkit.errors import BadInput, BuildConflict
from shardkit.format.builds import builds_of
from shardkit.format.differing import differing
from shardkit.format.layout import MANIFEST_NAME
from shardkit.format.manifest import Manifest
from shardkit.format.relations import refuse_contradictions
from shardkit.options import (
    FilePath,
    FilePaths,
    ProcessorSource,
    TemplateSource,
    TokenizerSource,
    checked,
    chosen,
    refuse_unknown,
)
from shardkit.sources import Copies
from shardkit.storage.open import path_here


@checked
def append(
    out: FilePath,
    inputs: FilePaths,
    *,
    image_root: FilePath | None = None,
    tokenizer: TokenizerSource | None = None,
    template: TemplateSource | None = None,
    processor: ProcessorSource | None = None,
    discard: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    **more: Unpack[AppendArguments],
) -> Manifest:
    """Pack more files into a dataset, with the recipe in its manifest and its own tokenizer.

    The result is, byte for byte, what `merge_datasets` makes of the dataset and of a pack of the
    new files. Until the manifest is replaced, last, the dataset is the old one; a killed append
    continues when it is called again, and a finished one changes nothing. `tokenizer`, `template`:
    instead of the dataset's own, which they must equal; `processor`: where the dataset was packed
    with one. `discard`: throw away an unfinished append of other files first; `storage_options`:
    for inputs at a URL, as of `pack`. `more`: `on_error`, `max_rejects`, `exclude`, `engine` of
    PackOptions; `workers`, `build_engine` as of `pack`.

    Raises BadInput (a file is in the dataset already), BuildConflict (another recipe), and what
    `pack` raises.
    """
    out = path_here(out, "a dataset to append to")
    files = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    refuse_unknown(more, AppendOptions, *engine_options())
    kept = chosen(AppendOptions, more)
    run = BuildRun(more, on_progress)
    load_manifest(out)
    building = building_folder(out)
    folder = building / APPENDING
    with (
        disk_errors(out),
        run.prepared(files),  # before the lock: see fork_no_more
        _made(building),
        locked(building) as lock,
        _tidy(building),
    ):
        manifest = load_manifest(out)
        refuse_contradictions(manifest, out)
        if discard:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        last = builds_of(manifest)[-1]
        with tidy(folder, lock):
            known = texts_again(manifest.recipe, processor)
            own = of_dataset(manifest, out, tokenizer, template)
            if known is not None:
                own |= {"tokenizer": None, "processor": known}
            options = PackOptions.of(
                manifest,
                last,
                **own,
                image_root=image_root,
                **msgspec.structs.asdict(kept),
            )
            copies = Copies(folder, storage_options or {}, run.fetched)
            plan, saved = open_plan(
                files, options, folder, run.scanner, anew="--discard", copies=copies
            )
            if len(manifest.builds) < 2 or plan.fingerprint != last.fingerprint:
                _refuse(manifest, plan, out, folder)
                receipts = run.build(plan, folder, range(plan.n_parts))
                whole = run.packed(plan, folder, receipts)
                run.committing()
                plan.check_unchanged()
                manifest = commit(
                    saved, receipts, out, folder, onto=manifest, whole=whole, mapped=run.map
                )
        _remove_leftovers(out, folder, manifest)
    return manifest


@contextmanager
def _made(building: Path) -> Iterator[None]:
    building.mkdir(exist_ok=True)
    yield


@contextmanager
def _tidy(building: Path) -> Iterator[None]:
    """Leave no working folder behind in which nothing was begun."""
    try:
        yield
    finally:
        if not (building / APPENDING / PLAN_NAME).exists():
            shutil.rmtree(building / APPENDING, ignore_errors=True)
        clean(building)


def _refuse(manifest: Manifest, plan: Plan, out: Path, folder: Path) -> None:
    """Raise when the plan does not fit the dataset; nothing of it is kept then."""
    lines = differing(manifest.recipe, plan.identity["recipe"])
    packed = {source.sha256: source.name for source in manifest.sources}
    twice = [scan for scan in plan.scans if scan.sha256 in packed]
    if not lines and not twice:
        return
    shutil.rmtree(folder)
    if lines:
        raise BuildConflict(
            "this is not what the dataset was packed with: " + "; ".join(lines),
            where=str(out),
            fix="Give the --tokenizer and --template that were used; rows of another recipe "
            "need a dataset of their own.",
        )
    raise BadInput(
        "the file is in the dataset already",
        where=twice[0].path,
        found=f"sha256 {twice[0].sha256[:16]}..., as {packed[twice[0].sha256]}",
        fix="Append only new files. To weigh data, use ShardMixture.",
    )


def _remove_leftovers(out: Path, folder: Path, manifest: Manifest) -> None:
    """Remove what an append, also a killed or discarded one, leaves beside the dataset."""
    shutil.rmtree(folder, ignore_errors=True)
    named = {MANIFEST_NAME, rejects_name(len(manifest.builds))}
    named |= {shard.name for shard in manifest.shards}
    for path in out.iterdir():
        if path.is_file() and is_ours(path.name) and path.name not in named:
            path.unlink()
