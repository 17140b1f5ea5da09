"""New inputs become new shards of a finished dataset; its own shards are not touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardkit.builder.again import options_again
from shardkit.builder.build import BuildEngine, Crew, OnProgress
from shardkit.builder.commit import commit
from shardkit.builder.failures import full_disk
from shardkit.builder.folder import APPENDING, building_folder, clean, is_ours, locked
from shardkit.builder.join import rejects_name
from shardkit.builder.plan import Plan, differing
from shardkit.builder.resume import open_plan
from shardkit.errors import BadInput, BuildConflict
from shardkit.format.builds import builds_of
from shardkit.format.layout import MANIFEST_NAME
from shardkit.format.manifest import Manifest, load_manifest
from shardkit.format.relations import refuse_contradictions


def append(
    out: str | Path,
    inputs: str | Path | Sequence[str | Path],
    *,
    image_root: Path | None = None,
    tokenizer: object = None,
    template: object = None,
    workers: int = 1,
    build_engine: BuildEngine = "local",
    ray_address: str | None = None,
    discard: bool = False,
    on_progress: OnProgress | None = None,
    **more: Any,
) -> Manifest:
    """Pack more files into a dataset, with the recipe in its manifest and its own tokenizer.

    The result is, byte for byte, what `merge_datasets` makes of the dataset and of a pack of the
    new files. Until the manifest is replaced, last, the dataset is the old one; a killed append
    continues when it is called again, and a finished one changes nothing. `template`: needed
    when it was a file. `discard`: throw away an unfinished append of other files first. `more`:
    `on_error`, `max_rejects`, `engine` of PackOptions.

    Raises BadInput (a file is in the dataset already), BuildConflict (another recipe), and what
    `pack` raises.
    """
    out = Path(out)
    files = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    crew = Crew(workers, build_engine, ray_address, on_progress)
    load_manifest(out)
    building = building_folder(out)
    folder = building / APPENDING
    building.mkdir(exist_ok=True)
    with locked(building), full_disk(out), _tidy(building):
        manifest = load_manifest(out)
        refuse_contradictions(manifest, out)
        if discard:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        last = builds_of(manifest)[-1]
        options = options_again(
            out,
            manifest,
            last,
            image_root=image_root,
            tokenizer=tokenizer,
            template=template,
            **more,
        )
        plan, outline = open_plan(files, options, folder, crew.scanned, anew="--discard")
        if len(manifest.builds) < 2 or plan.fingerprint != last.fingerprint:
            _refuse(manifest, plan, out, folder)
            receipts = crew.build(plan, folder, range(plan.n_parts))
            crew.committing()
            manifest = commit(outline, receipts, out, folder, onto=manifest)
        _remove_leftovers(out, folder, manifest)
    return manifest


@contextmanager
def _tidy(building: Path) -> Iterator[None]:
    """Leave no working folder behind in which nothing was begun."""
    try:
        yield
    finally:
        if not (building / APPENDING / "plan.json").exists():
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
