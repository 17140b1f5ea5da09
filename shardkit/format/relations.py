"""What must hold between the parts of a manifest, and between it and the files beside the shards.

A reader needs none of this: the manifest's own hash tells it that no bit was changed. Who audits
a dataset, or makes another out of it, asks here whether its writer was right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shardkit.errors import BadManifest
from shardkit.format.builds import Build, builds_of
from shardkit.format.canonical import sha256_file
from shardkit.format.layout import TOKENIZER_FOLDER
from shardkit.format.manifest import FileEntry, Manifest

_FIX = "Copy the dataset again, or pack it again."


def refuse_contradictions(manifest: Manifest, root: Path, *, with_files: bool = True) -> None:
    """Raise BadManifest when the manifest of a local dataset contradicts itself.

    `with_files`: also when a file beside the shards is gone or is another one. Shards are not
    looked at. To be called before another dataset is made out of this one.
    """
    for path, message in contradictions(manifest):
        raise BadManifest(message, where=f"{root / 'manifest.json'}: $.{path}", fix=_FIX)
    for name, entry in companions(manifest) if with_files else ():
        file = root / name
        if not file.is_file():
            raise BadManifest("a file of the dataset is gone", where=str(file), fix=_FIX)
        found = sha256_file(file)
        if found != entry.sha256:
            raise BadManifest(
                "not the file that the manifest names",
                where=str(file),
                expected=f"sha256 {entry.sha256}",
                found=f"sha256 {found}",
                fix=_FIX,
            )


def companions(manifest: Manifest) -> list[tuple[str, FileEntry]]:
    """The files beside the shards, by their paths in the dataset."""
    files = [(f"{TOKENIZER_FOLDER}/{entry.name}", entry) for entry in manifest.tokenizer_files]
    if manifest.rejects is not None:
        files.append((manifest.rejects.name, manifest.rejects))
    return files


def contradictions(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it) for everything in the manifest that contradicts the rest."""
    yield from _ledger(manifest)
    for number, build in enumerate(builds_of(manifest)):
        where = f" of build {number}" if manifest.builds else ""
        yield from _sources(manifest, build, where)
        yield from _parts(manifest, build, where)
    yield from _checks(manifest)


def _ledger(manifest: Manifest) -> Iterator[tuple[str, str]]:
    names = manifest.source_names
    if len(set(names)) != len(names):
        yield "sources", "two sources have one name"
    for number, source in enumerate(manifest.sources):
        where = f"sources[{number}]"
        if source.n_rows != source.n_kept + sum(source.rejected.values()):
            yield where, "rows are not kept plus rejected"
        if source.n_truncated > source.n_kept:
            yield where, "more rows are truncated than kept"
    if manifest.rejects is None and any(source.rejected for source in manifest.sources):
        yield "rejects", "rows were rejected, and no list of them is named"


def _sources(manifest: Manifest, build: Build, where: str) -> Iterator[tuple[str, str]]:
    last = build.first_source + len(build.source_names)
    found = [(s.sha256, s.n_rows) for s in manifest.sources[build.first_source : last]]
    wanted = build.identity.get("sources")
    listed = wanted if isinstance(wanted, list) else []
    expected = [(s.get("sha256"), s.get("n_rows")) if isinstance(s, dict) else s for s in listed]
    if found != expected:
        yield "sources", f"the sources{where} are not those of the identity"


def _parts(manifest: Manifest, build: Build, where: str) -> Iterator[tuple[str, str]]:
    parts = manifest.parts[build.first_part : build.first_part + build.n_parts]
    sources = manifest.sources[build.first_source : build.first_source + len(build.source_names)]
    row, shard = 0, build.first_shard
    for part in parts:
        if (part.first_row, part.first_shard) != (row, shard):
            yield "parts", f"the parts{where} do not lie end to end"
            return
        row, shard = row + part.n_rows, shard + part.n_shards
    if row != sum(source.n_rows for source in sources):
        yield "parts", f"the parts{where} do not hold every row of the sources"
    if shard != build.first_shard + build.n_shards:
        yield "parts", f"the parts{where} do not hold every shard"


def _checks(manifest: Manifest) -> Iterator[tuple[str, str]]:
    names = set(manifest.source_names)
    for name, entry in manifest.checks.items():
        if not isinstance(entry, dict) or not _has_rows(entry.get("examples", []), names):
            yield f"checks.{name}", "its examples are not rows of the sources"


def _has_rows(examples: object, names: set[str]) -> bool:
    return isinstance(examples, list) and all(
        isinstance(one, list) and len(one) == 2 and one[0] in names and isinstance(one[1], int)
        for one in examples
    )
