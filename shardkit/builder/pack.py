"""Inputs become a dataset: plan, parts, commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack, cast

from shardkit.builder.build import BuildRun, OnProgress
from shardkit.builder.build_engines import engine_options
from shardkit.builder.commit import commit
from shardkit.builder.folder import (
    building_folder,
    clean,
    clear_building,
    clear_dataset,
    locked,
    prepared,
    tidy,
)
from shardkit.builder.job import disk_errors
from shardkit.builder.options import PackOptions
from shardkit.builder.options.arguments import PackArguments
from shardkit.builder.plan import Plan
from shardkit.builder.saved_plan import open_plan, settled
from shardkit.builder.upload import pack_to_url
from shardkit.dataset import load_manifest
from shardkit.errors import BuildConflict, UsageError
from shardkit.format.differing import differing
from shardkit.format.layout import MANIFEST_NAME
from shardkit.format.manifest import Manifest
from shardkit.options import FilePath, FilePaths, Positive, checked, chosen, refuse_unknown
from shardkit.sources import Copies
from shardkit.storage.open import is_url, text_of
from shardkit.storage.urls import shown_url


@checked
def pack(
    inputs: FilePaths,
    out: FilePath,
    *,
    overwrite: bool = False,
    part: tuple[Positive, Positive] | None = None,
    on_progress: OnProgress | None = None,
    storage_options: Mapping[str, Any] | None = None,
    work_dir: FilePath | None = None,
    **options: Unpack[PackArguments],
) -> Manifest | None:
    """Turn raw files into a dataset of tokenised shards with a manifest.

    `inputs`: files, globs or folders, here or at a URL that fsspec knows; "-" is stdin. What is
    not a file here is copied into the work folder first. Files of a folder that are left out
    are named in the log. `out`: a new or empty folder, or one that an earlier, killed run with the
    same inputs and options began: it is continued. `overwrite`: begin anew, in place of what is in
    `out`. `part=(I, N)`: build only every N-th part, from the I-th (from 1); returns None, and
    `merge` commits when all are built.
    `options`: the fields of PackOptions (`tokenizer`, `template`, `max_length`, `packing`, ...),
    and who builds: `workers` processes (the result is the same for any number), `build_engine`.
    `out` may be a URL: the dataset is built in `work_dir` (by default in SHARDKIT_CACHE) and
    uploaded, the manifest last; `storage_options` go to fsspec, for inputs too.

    Returns the manifest. Raises UsageError, BadInput, TokenizerError, ProcessorError,
    TemplateError, MissingPackage, BuildConflict, TooManyRejects, BuildFailed, StorageError (a URL)
    and BadManifest (of a dataset that is in `out`).
    """
    refuse_unknown(options, PackOptions, *engine_options())
    settings = chosen(PackOptions, options)
    run = BuildRun(options, on_progress)
    files = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    storage = storage_options or {}
    if part is not None:
        _check_part(part, overwrite)
    if text_of(out).rstrip("/").rpartition("/")[2] == MANIFEST_NAME:
        raise UsageError(
            f"the output folder cannot be called {MANIFEST_NAME}",
            found=str(out),
            fix="Give the folder itself with --out.",
        )
    if is_url(text_of(out)):
        if part is not None:
            raise UsageError(
                "parts are built in a folder that all tasks see, not at a URL",
                found=shown_url(text_of(out)),
                fix="Give a folder with --out, merge there, and copy the result.",
            )

        def build(work: Path) -> Manifest:
            return cast(Manifest, _pack(files, settings, work, overwrite, None, run, storage))

        return pack_to_url(
            build,
            files,
            settings,
            text_of(out),
            overwrite=overwrite,
            storage_options=storage_options,
            work_dir=work_dir,
            on_bytes=run.uploaded,
        )
    return _pack(files, settings, Path(text_of(out)), overwrite, part, run, storage)


def _pack(
    files: list[str | Path],
    settings: PackOptions,
    out: Path,
    overwrite: bool,
    part: tuple[int, int] | None,
    run: BuildRun,
    storage: Mapping[str, Any],
) -> Manifest | None:
    """Build into a folder.

    What is refused before the first part is done leaves nothing behind, and no dataset is
    touched before the plan for its successor stands.
    """
    is_shared = part is not None
    with (
        disk_errors(out),
        run.prepared(files),  # before the lock: see fork_no_more
        prepared(out) as folder,
        locked(folder, shared=is_shared) as lock,
        tidy(folder, lock),
    ):
        if overwrite:
            clear_building(folder)
        finished = None if overwrite else _finished(out)
        copies = Copies(folder, storage, run.fetched)
        later = finished is None and not is_shared
        plan, saved = open_plan(
            files, settings, folder, run.scanner, copies=copies, digests_later=later
        )
        if finished is not None:
            return _refuse_or_keep(finished, plan, out)
        if overwrite:
            clear_dataset(out)
        if part is not None:
            run.build(plan, folder, _share(plan.n_parts, part))
            return None
        receipts = run.build(plan, folder, range(plan.n_parts))
        whole = run.packed(plan, folder, receipts)
        run.committing()
        plan, saved = settled(plan, saved, folder, run.scanner)
        plan.check_unchanged()
        return commit(saved, receipts, out, folder, whole=whole, mapped=run.map)


def _share(n_parts: int, part: tuple[int, int]) -> range:
    number, n = part
    return range(number - 1, n_parts, n)


def _check_part(part: tuple[int, int], overwrite: bool) -> None:
    number, n = part
    if overwrite:
        raise UsageError(
            "--overwrite with --part would remove what the other tasks build",
            fix="Remove the old dataset before the tasks start, or give another --out.",
        )
    if number > n:
        raise UsageError(
            "--part is out of range",
            expected="I/N with I from 1 to N",
            found=f"{number}/{n}",
            fix="In a Slurm array of N tasks, I is SLURM_ARRAY_TASK_ID counted from 1.",
        )


def _finished(out: Path) -> Manifest | None:
    return load_manifest(out) if (out / MANIFEST_NAME).is_file() else None


def _refuse_or_keep(finished: Manifest, plan: Plan, out: Path) -> Manifest:
    """A finished dataset of the same identity is the result; BuildConflict for another one."""
    clean(building_folder(out))
    if finished.fingerprint == plan.fingerprint:
        return finished
    raise BuildConflict(
        "there is another dataset already: "
        + "; ".join(differing(finished.identity, plan.identity)),
        where=str(out),
        fix="Give another folder with --out, or replace the dataset with --overwrite.",
    )
