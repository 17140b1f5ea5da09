"""Damaged shards are built again from the source, and must come out byte for byte the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.builder.folder import building_folder, clean, locked
from shardkit.builder.job import disk_errors
from shardkit.builder.options import PackOptions, of_dataset
from shardkit.builder.part import PartBuilder
from shardkit.builder.plan import Plan, plan_of
from shardkit.builder.receipt import part_folder
from shardkit.builder.texts import Texts, texts_again
from shardkit.dataset import load_manifest
from shardkit.errors import BadInput, BuildConflict, BuildFailed
from shardkit.format.atomic import sync_folder
from shardkit.format.builds import Build, builds_of
from shardkit.format.differing import differing
from shardkit.format.manifest import Manifest, ShardEntry
from shardkit.format.relations import refuse_contradictions
from shardkit.options import (
    FilePath,
    FilePaths,
    ProcessorSource,
    TemplateSource,
    TokenizerSource,
    checked,
)
from shardkit.sources import SourceScan, find_again, scan
from shardkit.storage.open import path_here
from shardkit.tokens import load_template

OnPart = Callable[[int, int], None]
"""Called with (parts done, parts to do)."""


@checked
def repair(
    out: FilePath,
    shards: Sequence[str],
    sources: FilePaths,
    *,
    image_root: FilePath | None = None,
    tokenizer: TokenizerSource | None = None,
    template: TemplateSource | None = None,
    processor: ProcessorSource | None = None,
    on_part: OnPart | None = None,
) -> list[str]:
    """Build the named shards of a dataset again from its source files; the names replaced.

    Only parts that made a named shard are built. `tokenizer` and `template` are needed only when
    the dataset's own tokenizer is damaged; `processor` where the dataset was packed with one (its
    settings are taken from the manifest).

    Raises BadInput when a source is missing (of a dataset that was appended to or merged, only the
    files of the builds that made a named shard are needed), BuildConflict when something else than
    before goes in, BuildFailed when a shard does not come out as the manifest says: its part
    replaces nothing. And BadManifest, and what loading tokenizer, processor and template raises.
    """
    out = path_here(out, "a dataset to repair")
    manifest = load_manifest(out)
    refuse_contradictions(manifest, out, with_files=False)
    building = building_folder(out)
    folder = building / "repair"
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    given = {
        "image_root": image_root,
        "tokenizer": tokenizer,
        "template": template,
        "processor": processor,
    }
    with disk_errors(out):
        building.mkdir(exist_ok=True)
    with disk_errors(out), locked(building):
        folder.mkdir(exist_ok=True)
        try:
            todo = _todo(manifest, set(shards))
            _refuse_whole([build for build, _ in todo], out)
            scans = _scans(manifest, [build for build, _ in todo], sources, folder)
            plans = [_plan(out, manifest, build, scans, given, folder) for build, _ in todo]
            replaced: set[str] = set()
            n_parts, n_done = sum(len(parts) for _, parts in todo), 0
            for plan, (build, parts) in zip(plans, todo, strict=True):
                builder = PartBuilder(plan, folder)
                for part in parts:
                    entry = manifest.parts[build.first_part + part]
                    last = entry.first_shard + entry.n_shards
                    wanted = manifest.shards[entry.first_shard : last]
                    replaced |= _rebuild(out, wanted, set(shards), builder, part)
                    n_done += 1
                    if on_part:
                        on_part(n_done, n_parts)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            clean(building)
    return [entry.name for entry in manifest.shards if entry.name in replaced]


def clear_repair(out: Path) -> None:
    """Remove what a repair has left that was killed after its last shard was in place.

    Raises BuildConflict while another process works there, BuildFailed without the right to.
    """
    building = building_folder(out)
    if not building.is_dir():
        return
    left = {path.name for path in building.iterdir()}
    if left <= {"lock"} or "repair" in left:
        with disk_errors(out), locked(building):
            clean(building)


def _refuse_whole(builds: Sequence[Build], out: Path) -> None:
    if any(build.is_whole for build in builds):
        raise BuildConflict(
            "the shard is of packs over a whole input, whose rows were laid out together",
            where=str(out),
            fix="Pack the sources again (of a repacked dataset: repack the datasets that it was "
            "made of): the same options give the same bytes.",
        )


def _todo(manifest: Manifest, names: set[str]) -> list[tuple[Build, list[int]]]:
    """The builds that made a named shard, and which of their parts did (counted in the build).

    Parts whose first shards are [0, 2, 5]: shard 3 is of part 1.
    """
    wanted = np.flatnonzero([shard.name in names for shard in manifest.shards])
    first_shards = np.array([part.first_shard for part in manifest.parts])
    parts = np.unique(np.searchsorted(first_shards, wanted, side="right") - 1)
    todo = []
    for build in builds_of(manifest):
        own = parts - build.first_part
        own = own[(own >= 0) & (own < build.n_parts)]
        if len(own):
            todo.append((build, own.tolist()))
    return todo


def _scans(
    manifest: Manifest, builds: Sequence[Build], sources: Sequence[str | Path], folder: Path
) -> dict[str, SourceScan]:
    """The given files by their digests; all that these builds were made of must be among them."""
    found: dict[str, SourceScan] = {}
    names = [source.name for source in manifest.sources]
    for number, path in enumerate(find_again(sources, names)):
        one = scan(path, name=path.name, spool=folder / f"source-{number}")
        found[one.sha256] = one
    missing = [
        name
        for build in builds
        for name, source in zip(build.source_names, build.identity["sources"], strict=True)
        if source["sha256"] not in found
    ]
    if missing:
        raise BadInput(
            "source files are missing, or are not those that were packed",
            where=", ".join(missing[:5]),
            fix="Give every file that was packed, unchanged: --source FILE ...",
        )
    return found


def _plan(
    out: Path,
    manifest: Manifest,
    build: Build,
    scans: Mapping[str, SourceScan],
    given: Mapping[str, Any],
    folder: Path,
) -> Plan:
    """The plan that the build was made by."""
    processor = texts_again(manifest.recipe, given["processor"])
    own = of_dataset(manifest, out, given["tokenizer"], given["template"])
    options = PackOptions.of(manifest, build, **own, image_root=given["image_root"])
    tokenizer: Any = options.tokenizer
    template = load_template(
        options.template, tokenizer, date=options.date, args=options.template_args
    )
    ordered = tuple(scans[source["sha256"]] for source in build.identity["sources"])
    plan = plan_of(ordered, options, Texts(tokenizer, template, processor), folder)
    lines = differing(build.identity, plan.identity)
    if lines:
        raise BuildConflict(
            "this is not what the dataset was packed with: " + "; ".join(lines),
            where=str(out),
            fix="Give the --tokenizer and --template that were used.",
        )
    return plan


def _rebuild(
    out: Path, wanted: Sequence[ShardEntry], names: set[str], builder: PartBuilder, part: int
) -> set[str]:
    """Build one part again; put its named shards in place when they are what is `wanted`.

    Returns the names of the shards that were replaced.
    """
    made = builder.build(part).shards
    pairs = [
        (old, new)
        for old, new in zip_longest(wanted, made)
        if old is None or new is None or old.name in names
    ]
    for old, new in pairs:
        if old is None or new is None or new.sha256 != old.sha256:
            raise BuildFailed(
                "the shard does not come out as it was",
                where=str(out / (old or new).name),
                expected=f"sha256 {old.sha256[:16]}..." if old else "no such shard",
                found=f"sha256 {new.sha256[:16]}..." if new else "no such shard",
                fix="Something that went in is not the same: images, or library versions "
                "(the zstd library for .tar.zst). Pack again with --overwrite.",
            )
    for old, new in pairs:
        os.replace(part_folder(builder.folder, part) / new.name, out / old.name)
    sync_folder(out)
    return {old.name for old, _ in pairs if old is not None}
