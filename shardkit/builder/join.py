"""Datasets of one recipe as one: a manifest and a list of rejected rows made of theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shardkit.builder.ledger import join_checks
from shardkit.errors import BadInput, BuildConflict
from shardkit.format.atomic import appear
from shardkit.format.builds import Build, builds_of, joined_identity
from shardkit.format.canonical import sha256_file
from shardkit.format.codec import parse_compression
from shardkit.format.differing import differing
from shardkit.format.layout import REJECTS_NAME, shard_name
from shardkit.format.manifest import (
    BuildEntry,
    FileEntry,
    Manifest,
    PartEntry,
    ShardEntry,
    content_of,
    fingerprint_of,
)
from shardkit.version import __version__

_NUMBER = re.compile(r" \(\d+\)$")
Names = Mapping[str, str]
"""The name of a source in the joined dataset, by its name before."""


def join(manifests: Sequence[Manifest], places: Sequence[str]) -> tuple[Manifest, list[Names]]:
    """The manifest of all shards in order, without `rejects`; and how sources are called in it.

    Shards get new numbers. A source whose name is taken becomes `NAME (2)`. `places`: the
    datasets' names in errors. Raises BuildConflict, naming what differs, when recipes or
    compression do, BadInput when a source file is in two of them.
    """
    _refuse_unlike(manifests, places)
    _refuse_twice(manifests, places)
    names = _names(manifests)
    builds = [build for manifest in manifests for build in builds_of(manifest)]
    shards = list(_numbered(manifests))
    identity = joined_identity([manifest.identity for manifest in manifests])
    joined = Manifest(
        fingerprint=fingerprint_of(identity),
        content=content_of(shards),
        identity=identity,
        writer=f"shardkit {__version__}",
        engine=_joined_engines(manifests),
        compression=manifests[0].compression,
        sources=[
            msgspec.structs.replace(source, name=called[source.name])
            for manifest, called in zip(manifests, names, strict=True)
            for source in manifest.sources
        ],
        shards=shards,
        parts=list(_moved_parts(manifests)),
        builds=_entries(builds),
        tokenizer_files=manifests[0].tokenizer_files,
        checks=join_checks([_renamed(m.checks, c) for m, c in zip(manifests, names, strict=True)]),
        extra=manifests[0].extra,
    )
    return joined, names


def join_rejects(
    files: Sequence[Path | None], names: Sequence[Names], out: Path, n_builds: int
) -> FileEntry:
    """Write all lines of the datasets' lists of rejected rows, with the sources' new names.

    The file's name holds the number of builds: the old list stays until the manifest names this.
    """
    name = rejects_name(n_builds)
    with appear(out / name) as file:
        for path, called in zip(files, names, strict=True):
            if path is None:
                continue
            with open(path, "rb") as lines:
                for line in lines:
                    fields = msgspec.json.decode(line, type=dict[str, Any])
                    fields["source"] = called[fields["source"]]
                    file.write(msgspec.json.encode(fields) + b"\n")
    path = out / name
    return FileEntry(name=name, sha256=sha256_file(path), n_bytes=path.stat().st_size)


def rejects_of(manifest: Manifest, root: Path) -> Path | None:
    """The dataset's list of rejected rows, when it has one."""
    return root / manifest.rejects.name if manifest.rejects else None


def rejects_name(n_builds: int) -> str:
    """The file that lists the rejected rows of a dataset of so many builds."""
    stem, dot, suffix = REJECTS_NAME.partition(".")
    return REJECTS_NAME if n_builds <= 1 else f"{stem}-{n_builds}{dot}{suffix}"


def _refuse_unlike(manifests: Sequence[Manifest], places: Sequence[str]) -> None:
    first = manifests[0]
    for other, place in zip(manifests[1:], places[1:], strict=True):
        ours = {"compression": first.compression, **first.recipe}
        theirs = {"compression": other.compression, **other.recipe}
        lines = differing(ours, theirs, words=(f"in {places[0]}", f"in {place}"))
        if lines:
            raise BuildConflict(
                "the datasets are of different recipes: " + "; ".join(lines),
                where=place,
                fix="Pack one of them again with the options of the other; or train on both "
                "with ShardMixture.",
            )


def _refuse_twice(manifests: Sequence[Manifest], places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for manifest, place in zip(manifests, places, strict=True):
        for source in manifest.sources:
            before = seen.get(source.sha256)
            if before is not None:
                raise BadInput(
                    "the same source file is in the result twice",
                    where=f"{place}, {source.name}",
                    found=f"sha256 {source.sha256[:16]}..., as {before}",
                    fix="Leave one out. To weigh data, use ShardMixture.",
                )
        seen |= {source.sha256: f"{place}, {source.name}" for source in manifest.sources}


def _names(manifests: Sequence[Manifest]) -> list[Names]:
    taken: set[str] = set()
    names: list[Names] = []
    for manifest in manifests:
        called = {}
        for source in manifest.sources:
            name, number = source.name, 2
            while name in taken:
                name, number = f"{_NUMBER.sub('', source.name)} ({number})", number + 1
            taken.add(name)
            called[source.name] = name
        names.append(called)
    return names


def _numbered(manifests: Sequence[Manifest]) -> Iterator[ShardEntry]:
    """All shards, numbered through."""
    suffix = parse_compression(manifests[0].compression)[0].suffix
    entries = (entry for manifest in manifests for entry in manifest.shards)
    for number, entry in enumerate(entries):
        yield msgspec.structs.replace(entry, name=shard_name(number, suffix))


def _moved_parts(manifests: Sequence[Manifest]) -> Iterator[PartEntry]:
    n_before = 0
    for manifest in manifests:
        for part in manifest.parts:
            yield msgspec.structs.replace(part, first_shard=n_before + part.first_shard)
        n_before += len(manifest.shards)


def _entries(builds: Sequence[Build]) -> list[BuildEntry]:
    if len(builds) == 1:
        return []
    return [BuildEntry(n_shards=build.n_shards, n_parts=build.n_parts) for build in builds]


def _renamed(checks: Mapping[str, Any], called: Names) -> dict[str, Any]:
    """The checks with the sources' new names."""
    renamed = {}
    for name, entry in checks.items():
        renamed[name] = dict(entry)
        if "examples" in entry:
            renamed[name]["examples"] = [[called[source], row] for source, row in entry["examples"]]
        if "fields" in entry:
            renamed[name]["fields"] = {called[s]: unread for s, unread in entry["fields"].items()}
    return renamed


def _joined_engines(manifests: Sequence[Manifest]) -> str:
    """What made the ids of any; an entry with a reason in brackets stays whole."""
    entries = [[m.engine] if "(" in m.engine else m.engine.split(", ") for m in manifests]
    return ", ".join(sorted({entry for some in entries for entry in some}))
