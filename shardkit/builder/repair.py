"""Damaged shards are built again from the source, and must come out byte for byte the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from shardkit.builder.folder import building_folder, locked
from shardkit.builder.options import PackOptions
from shardkit.builder.part import PartBuilder, part_folder
from shardkit.builder.plan import Plan, differing, plan_of
from shardkit.errors import BadInput, BuildConflict, BuildFailed
from shardkit.format.atomic import sync_folder
from shardkit.format.layout import TOKENIZER_FOLDER
from shardkit.format.manifest import Manifest, load_manifest
from shardkit.sources import SourceScan, expand_inputs, scan
from shardkit.tokens import load_template, load_tokenizer

OnPart = Callable[[int, int], None]
"""Called with (parts done, parts to do)."""


def repair(
    out: str | Path,
    shards: Sequence[str],
    sources: Sequence[str | Path],
    *,
    image_root: Path | None = None,
    tokenizer: object = None,
    template: object = None,
    on_part: OnPart | None = None,
) -> list[str]:
    """Build the named shards of a dataset again from its source files; the names replaced.

    Only parts that made a named shard are built. `tokenizer` and `template` are needed only when
    the dataset's own copies are damaged, or the template was a file. Raises BadInput when a
    source is missing, BuildConflict when something else than before goes in, BuildFailed when
    a shard does not come out as the manifest says: nothing is replaced then.
    """
    out = Path(out)
    manifest = load_manifest(out)
    folder = building_folder(out)
    folder.mkdir(exist_ok=True)
    with locked(folder):
        try:
            with tempfile.TemporaryDirectory() as spool:
                scans = _scans(manifest, sources, Path(spool))
                plan = _plan(out, manifest, scans, image_root, tokenizer, template)
                return _rebuild(out, folder, manifest, plan, list(shards), on_part)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _scans(
    manifest: Manifest, sources: Sequence[str | Path], spool: Path
) -> tuple[SourceScan, ...]:
    """The source files in the order of the manifest, found by their digests."""
    found: dict[str, SourceScan] = {}
    for number, path in enumerate(expand_inputs(sources)):
        one = scan(path, name=path.name, spool=spool / f"source-{number}")
        found[one.sha256] = one
    missing = [source.name for source in manifest.sources if source.sha256 not in found]
    if missing:
        raise BadInput(
            "source files are missing, or are not those that were packed",
            where=", ".join(missing[:5]),
            fix="Give every file that was packed, unchanged: --source FILE ...",
        )
    return tuple(found[source.sha256] for source in manifest.sources)


def _plan(
    out: Path,
    manifest: Manifest,
    scans: tuple[SourceScan, ...],
    image_root: Path | None,
    tokenizer: object,
    template: object,
) -> Plan:
    recipe, layout = manifest.recipe, manifest.identity["layout"]
    images = recipe.get("images") or {}
    if images and image_root is None:
        raise BadInput("the dataset holds images", fix="Name their folder: --image-root DIR.")
    loaded = load_tokenizer(tokenizer or out / TOKENIZER_FOLDER)
    packed = recipe["template"]
    options = PackOptions(
        tokenizer=loaded,
        template=template or packed["name"],
        date=packed.get("date"),
        source_format=recipe["source_format"],
        system=recipe["system"],
        max_length=recipe["max_length"],
        packing="none" if recipe["packing"] == "kept" else recipe["packing"],
        special_tokens_in_text=recipe["special_tokens_in_text"],
        shuffle_seed=manifest.identity["shuffle_seed"],
        compression=manifest.compression,
        image_root=image_root if images else None,
        **{name: value for name, value in images.items() if value is not None},
        **layout,
    )
    chosen = load_template(options.template, loaded, date=options.date)
    plan = plan_of(scans, options, loaded, chosen)
    lines = differing(manifest.identity, plan.identity)
    if lines:
        raise BuildConflict(
            "this is not what the dataset was packed with: " + "; ".join(lines),
            where=str(out),
            fix="Give the --tokenizer and --template that were used.",
        )
    return plan


def _rebuild(
    out: Path,
    folder: Path,
    manifest: Manifest,
    plan: Plan,
    names: list[str],
    on_part: OnPart | None,
) -> list[str]:
    numbers = [i for i, entry in enumerate(manifest.shards) if entry.name in set(names)]
    first_shards = np.array([part.first_shard for part in manifest.parts])
    parts = sorted({int(np.searchsorted(first_shards, i, side="right")) - 1 for i in numbers})
    builder = PartBuilder(plan, folder)
    for done, part in enumerate(parts):
        begin = manifest.parts[part].first_shard
        receipt = builder.build(part)
        for i, entry in enumerate(receipt.shards):
            wanted = manifest.shards[begin + i]
            if begin + i in numbers and entry.sha256 != wanted.sha256:
                raise BuildFailed(
                    "the shard does not come out as it was",
                    where=str(out / wanted.name),
                    expected=f"sha256 {wanted.sha256[:16]}...",
                    found=f"sha256 {entry.sha256[:16]}...",
                    fix="Something that went in is not the same: images, or library versions "
                    "(the zstd library for .tar.zst). Pack again with --overwrite.",
                )
        for i, entry in enumerate(receipt.shards):
            if begin + i in numbers:
                target = out / manifest.shards[begin + i].name
                os.replace(part_folder(folder, part) / entry.name, target)
        if on_part:
            on_part(done + 1, len(parts))
    sync_folder(out)
    return [manifest.shards[i].name for i in numbers]
