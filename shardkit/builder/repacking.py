"""A finished dataset at another length, in other packs, another order or other shards.

Everything comes from its tokens: no source and no tokenizer is needed. Packs are laid out over
the whole dataset, from lengths alone; then tokens are copied, row after row.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.builder.commit import write_tokenizer
from shardkit.builder.folder import (
    clean,
    clear_building,
    clear_dataset,
    locked,
    prepared,
    tidy,
)
from shardkit.builder.gather import Gatherer, OldShards, Pictures, find_pictures
from shardkit.builder.job import disk_errors
from shardkit.builder.join import join, rejects_of
from shardkit.builder.options import PACKINGS, Compression, MaxRejects
from shardkit.builder.recut import Recut, RejectLine, recut, refuse_lost
from shardkit.builder.stretches import Stretches, read_stretches, shards_of
from shardkit.conversation import Reason
from shardkit.dataset import load_manifest
from shardkit.errors import BuildConflict, BuildFailed, UsageError
from shardkit.format.atomic import appear, sync_folder
from shardkit.format.builds import WHOLE, builds_of
from shardkit.format.canonical import sha256_file
from shardkit.format.layout import MANIFEST_NAME, REJECTS_NAME, TOKENIZER_FOLDER
from shardkit.format.manifest import (
    FileEntry,
    Manifest,
    PartEntry,
    ShardEntry,
    content_of,
    fingerprint_of,
)
from shardkit.format.recipe import MULTIPLE, NO_PACKING, PREFERENCE, RowRules, pad_token_id_of
from shardkit.format.relations import refuse_contradictions
from shardkit.format.rolling import RollingShardWriter
from shardkit.options import FilePath, FilePaths, Positive, checked
from shardkit.storage.open import path_here
from shardkit.tokens.assemble import BEYOND
from shardkit.tokens.layout import ImageSpans, Layout, Limits, Units
from shardkit.tokens.padding import check_multiple, lay_out, with_padding
from shardkit.version import __version__

OnRows = Callable[[int, int], None]
"""Called with (rows written, all rows)."""
Truncated = Literal["keep", "drop"]


@dataclass(frozen=True, slots=True)
class _Old:
    """The datasets that are read."""

    roots: list[Path]
    manifests: list[Manifest]
    joined: Manifest
    """All of the datasets as one, for names, counts and checks."""
    rejects: list[RejectLine]

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe, which all of them share."""
        return self.manifests[0].recipe


@checked
def repack(
    datasets: FilePaths,
    out: FilePath,
    *,
    max_length: Positive | None = None,
    packing: Annotated[str, PACKINGS] | None = None,
    shuffle_seed: Annotated[int, msgspec.Meta(ge=0, le=2**64 - 1)] | None = None,
    shard_size: Positive | None = None,
    compression: Compression | None = None,
    truncated: Truncated | None = None,
    pad_documents_to_multiple: Positive | None = None,
    max_rejects: MaxRejects | None = 0.5,
    overwrite: bool = False,
    on_rows: OnRows | None = None,
) -> Manifest:
    """Make a dataset of the samples of finished ones, which stay as they are.

    What is not given stays as it was, but for the shuffled order of several builds together: they
    stand in the order of their sources. `packing` is laid out over all samples together. The
    samples are those of `pack` with these options; a killed repack begins again when it is called
    again, with the same bytes. `truncated`: needed for a longer `max_length` when rows were cut,
    or rejected, for length: `keep` them as they are, or `drop` them. `pad_documents_to_multiple`:
    of every document of a pack; a dataset that has such padding already is refused.
    `max_rejects`: a count, or a share below 1, of the rows that `datasets` hold and `out` would
    not, unless `truncated="drop"` says so; None: no limit. With `overwrite` what is in `out` goes
    when the rows are known.

    Raises UsageError, BuildConflict (recipes differ, there is another dataset in `out`, rows were
    cut for length), BadInput (no row is left), TooManyRejects, BuildFailed (no space),
    BadManifest, CorruptShard.
    """
    given = [datasets] if isinstance(datasets, str | Path) else datasets
    out = path_here(out, "the output of a repack")
    old = _opened([path_here(path, "a dataset to repack") for path in given])
    recipe = _recipe(old.recipe, max_length, packing, pad_documents_to_multiple)
    recipe, drops = _truncation(old, recipe, truncated)
    identity = _identity(old, recipe, shuffle_seed, shard_size)
    codec = old.joined.compression if compression is None else compression
    n_bytes = sum(entry.n_bytes for entry in old.joined.shards)
    _refuse_onto_itself(old.roots, out, overwrite=overwrite)
    with disk_errors(out), prepared(out) as folder, locked(folder) as lock, tidy(folder, lock):
        if (out / MANIFEST_NAME).is_file() and not overwrite:
            clean(folder)
            return _same(load_manifest(out), identity, codec, out)
        _refuse_full(out, n_bytes)
        clear_building(folder)
        held = read_stretches(old.roots, old.manifests, identity["shuffle_seed"])
        shards = OldShards(shards_of(old.roots, old.manifests), folder / "plain")
        shards.folder.mkdir()
        try:
            done = recut(held, shards, old.joined, old.rejects, recipe["max_length"], drops=drops)
            refuse_lost(done, old.joined, None if drops else max_rejects)
            clear_dataset(out)  # what is refused is refused by now
            writer = RollingShardWriter(
                out, recipe=recipe, compression=codec, shard_size=identity["layout"]["shard_size"]
            )
            with writer:
                entries = _written(done, shards, old.recipe, recipe, writer, on_rows)
        finally:
            shards.close()
        manifest = _manifest(old, identity, codec, entries, done)
        rejects = _write_rejects(done, out)
        files = write_tokenizer(_tokenizer_of(old), out)
        manifest = msgspec.structs.replace(manifest, rejects=rejects, tokenizer_files=files)
        refuse_contradictions(manifest, out)
        sync_folder(out)
        with appear(out / MANIFEST_NAME) as file:
            file.write(manifest.to_bytes())
        clean(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _opened(roots: list[Path]) -> _Old:
    manifests = [load_manifest(root) for root in roots]
    for manifest, root in zip(manifests, roots, strict=True):
        refuse_contradictions(manifest, root)
    joined, names = join(manifests, [str(root) for root in roots])
    recipe, where = joined.recipe, str(roots[0])
    if recipe.get("task") == PREFERENCE:
        raise BuildConflict(
            "preference rows are not packed anew", where=where, fix="Pack the sources again."
        )
    if recipe["packing"] == "kept":
        raise BuildConflict(
            "its rows came packed, and their samples are not known",
            where=where,
            fix="Pack the sources again, with --packing concat or best-fit.",
        )
    if recipe.get(MULTIPLE):
        raise BuildConflict(
            "its documents are padded, and where their own tokens end is not kept",
            where=where,
            found=f"--pad-documents-to-multiple {recipe[MULTIPLE]}",
            fix="Repack the dataset that it was made of, or pack the sources again.",
        )
    rejects: list[RejectLine] = []
    for manifest, root, called in zip(manifests, roots, names, strict=True):
        path = rejects_of(manifest, root)
        lines = path.read_bytes().splitlines() if path else []
        read = (msgspec.json.decode(line, type=RejectLine) for line in lines if line)
        rejects += [line | {"source": called[line["source"]]} for line in read]
    return _Old(roots, manifests, joined, rejects)


def _recipe(
    old: Mapping[str, Any], max_length: int | None, packing: str | None, multiple: int | None
) -> dict[str, Any]:
    """The recipe of the new rows."""
    recipe = dict(old)
    if max_length is not None:
        recipe["max_length"] = max_length
    if packing is not None:
        recipe["packing"] = packing
    if recipe["packing"] != NO_PACKING and recipe["max_length"] is None:
        raise UsageError(
            f"--packing {recipe['packing']} needs --max-length",
            fix="Say how long a packed row is: --max-length 2048.",
        )
    if multiple is not None and multiple > 1:
        if recipe["packing"] == NO_PACKING:
            raise UsageError(
                "--pad-documents-to-multiple is for the documents of packs",
                found="--packing none",
                fix="Give --packing best-fit.",
            )
        check_multiple(multiple, recipe["max_length"])
        recipe[MULTIPLE] = multiple
    return recipe


def _truncation(
    old: _Old, recipe: dict[str, Any], truncated: Truncated | None
) -> tuple[dict[str, Any], bool]:
    """The recipe, which says where rows stay cut, and whether rows that were cut are dropped."""
    before, after = old.recipe["max_length"], recipe["max_length"]
    is_longer = before is not None and (after is None or after > before)
    cut_at = old.recipe.get("rows_cut_at")
    if not is_longer and cut_at is None:
        return recipe, False
    n_cut = sum(source.n_truncated for source in old.joined.sources)
    n_rejected = sum(
        line["reason"] == Reason.TOO_LONG or BEYOND in str(line.get("detail"))
        for line in old.rejects
    )
    n_split = int(old.joined.checks.get("notes", {}).get("documents_split", 0))
    if not is_longer or not n_cut + n_rejected + n_split:
        return recipe, False
    if n_split and truncated != "keep":
        raise BuildConflict(
            f"{n_split} documents were split at max_length {before}, and stay so",
            where=str(old.roots[0]),
            expected=f"--max-length up to {before}",
            found=str(after),
            fix="Say so with --truncated keep, or pack the sources again.",
        )
    if truncated is None:
        raise BuildConflict(
            f"{n_cut} rows were cut and {n_rejected} rejected at max_length {before}: what is "
            "missing of them is not in the dataset",
            where=str(old.roots[0]),
            expected=f"--max-length up to {before}",
            found=str(after),
            fix="Keep the rows as they are with --truncated keep, leave them out with "
            "--truncated drop, or pack the sources again.",
        )
    if truncated == "keep":
        recipe["rows_cut_at"] = cut_at or before
    return recipe, truncated == "drop"


def _identity(
    old: _Old, recipe: dict[str, Any], shuffle_seed: int | None, shard_size: int | None
) -> dict[str, Any]:
    """The identity of a pack of all sources together."""
    builds = [build for manifest in old.manifests for build in builds_of(manifest)]
    first = builds[0].identity
    seeds = {build.identity["shuffle_seed"] for build in builds}
    if shuffle_seed is None and len(seeds) == 1 and len(builds) == 1:
        shuffle_seed = seeds.pop()
    layout = {**first["layout"], "scope": WHOLE}
    if shard_size is not None:
        layout["shard_size"] = shard_size
    return {
        **first,
        "recipe": recipe,
        "sources": [one for build in builds for one in build.identity["sources"]],
        "layout": layout,
        "shuffle_seed": shuffle_seed,
    }


def _same(found: Manifest, identity: Mapping[str, Any], codec: str, out: Path) -> Manifest:
    if found.fingerprint == fingerprint_of(dict(identity)) and found.compression == codec:
        return found
    raise BuildConflict(
        "there is another dataset already",
        where=str(out),
        fix="Give a new folder with --out, or --overwrite.",
    )


def _refuse_onto_itself(roots: Sequence[Path], out: Path, *, overwrite: bool) -> None:
    """Raise UsageError where a dataset that is read would be removed first."""
    for root in roots:
        if overwrite and out.exists() and os.path.samefile(root, out):
            raise UsageError(
                "--overwrite would remove the dataset that is read",
                where=str(out),
                fix="Give a new folder with --out; remove the old one when the new one is there.",
            )


def _refuse_full(out: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < n_bytes:
        raise BuildFailed(
            "there is not enough space",
            where=str(out),
            expected=f"about {n_bytes} bytes",
            found=f"{free} bytes",
            fix="Free some space, or give a folder on another disk.",
        )


def _written(
    done: Recut,
    shards: OldShards,
    old_recipe: Mapping[str, Any],
    recipe: Mapping[str, Any],
    writer: RollingShardWriter,
    on_rows: OnRows | None,
) -> list[ShardEntry]:
    old_rules, rules = RowRules.of(old_recipe), RowRules.of(recipe)
    pictures = find_pictures(done.held, shards, old_rules)
    layout, pads = _layout(done.held, pictures, recipe)
    n_rows = int(layout.pack[-1]) + 1 if len(layout.pack) else 0
    n_done = 0
    pad, n_segments = pad_token_id_of(recipe), 0
    for samples in Gatherer(done.held, shards, pictures, layout, rules):
        if samples.segments is not None:
            own = slice(n_segments, n_segments + len(samples.segments))
            n_segments += len(samples.segments)
            samples = with_padding(samples, pads[own], pad)
        writer.write(samples)
        n_done += len(samples)
        if on_rows:
            on_rows(n_done, n_rows)
    return writer.finish()


def _layout(
    held: Stretches, pictures: Pictures, recipe: Mapping[str, Any]
) -> tuple[Layout, NDArray[np.int64]]:
    """Where the samples go, and the padding behind each stretch."""
    images = recipe.get("images") or {}
    lengths, n_images = held.lengths, _per_sample(held, pictures.spans.first, None)
    extra = pictures.spans.places - pictures.spans.lengths
    units = Units(
        lengths=lengths,
        places=lengths + _per_sample(held, pictures.spans.first, extra),
        n_images=n_images,
        images=pictures.spans if len(n_images) else ImageSpans.none(),
    )
    limits = Limits(recipe["max_length"] or int(units.places.max(initial=1)))
    if images.get("max_images") is not None:
        limits = Limits(limits.max_length, images["max_images"])
    return lay_out(recipe["packing"], units, limits, recipe.get(MULTIPLE, 1))


def _per_sample(
    held: Stretches, at: NDArray[np.int64], values: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """(n,) how many images each sample has, or the sum of their values.

    Samples of 3 and 2 tokens, images at tokens [1, 3, 4]: owners [0, 1, 1], so [1, 2] images.
    """
    owner = np.searchsorted(np.cumsum(held.lengths), at, side="right")
    return np.bincount(owner, values, len(held)).astype(np.int64)


def _manifest(
    old: _Old,
    identity: dict[str, Any],
    codec: str,
    entries: list[ShardEntry],
    done: Recut,
) -> Manifest:
    n_rows = sum(source.n_rows for source in old.joined.sources)
    return Manifest(
        fingerprint=fingerprint_of(identity),
        content=content_of(entries),
        identity=identity,
        writer=f"shardkit {__version__}",
        engine=old.joined.engine,
        compression=codec,
        sources=done.sources,
        shards=entries,
        parts=[PartEntry(first_row=0, n_rows=n_rows, first_shard=0, n_shards=len(entries))],
        checks=done.checks,
        extra=old.joined.extra,
    )


def _write_rejects(done: Recut, out: Path) -> FileEntry:
    """Write the rows that were rejected before, then those that are now."""
    path = out / REJECTS_NAME
    with appear(path) as file:
        for line in done.rejects:
            file.write(msgspec.json.encode(line) + b"\n")
    return FileEntry(name=REJECTS_NAME, sha256=sha256_file(path), n_bytes=path.stat().st_size)


def _tokenizer_of(old: _Old) -> dict[str, bytes]:
    folder = old.roots[0] / TOKENIZER_FOLDER
    files: Sequence[FileEntry] = old.manifests[0].tokenizer_files
    return {entry.name: (folder / entry.name).read_bytes() for entry in files}
