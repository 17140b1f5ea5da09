"""Which pack made which shards, in a dataset that was appended to or merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardkit.format.manifest import Manifest, fingerprint_of

WHOLE = "all"
"""`layout.scope` of a build whose rows were laid out together; it has one part."""


@dataclass(frozen=True, slots=True)
class Build:
    """One pack: what made its shards, and which entries of the manifest are its own."""

    identity: dict[str, Any]
    """The identity of a dataset of this build alone: `format`, `recipe`, `sources`, `layout` and
    `shuffle_seed`."""
    source_names: tuple[str, ...]
    """What the source numbers in its shards mean."""
    first_source: int
    first_shard: int
    n_shards: int
    first_part: int
    n_parts: int

    @property
    def fingerprint(self) -> str:
        """The sha256 of the build's identity, 64 hex digits."""
        return fingerprint_of(self.identity)

    @property
    def is_whole(self) -> bool:
        """Whether the build's rows were laid out together, so that no shard can be made alone."""
        layout = self.identity.get("layout")
        return isinstance(layout, dict) and layout.get("scope") == WHOLE

    @property
    def shards(self) -> range:
        """The numbers of the build's shards in the dataset."""
        return range(self.first_shard, self.first_shard + self.n_shards)


def builds_of(manifest: Manifest) -> list[Build]:
    """The builds of a dataset in order, at least one."""
    names = manifest.source_names
    if not manifest.builds:
        n_shards, n_parts = len(manifest.shards), len(manifest.parts)
        return [Build(manifest.identity, tuple(names), 0, 0, n_shards, 0, n_parts)]
    shared = {key: manifest.identity[key] for key in ("format", "recipe")}
    builds: list[Build] = []
    source = shard = part = 0
    for own, entry in zip(manifest.identity["builds"], manifest.builds, strict=True):
        last = source + len(own["sources"])
        mine = tuple(names[source:last])
        builds.append(Build(shared | own, mine, source, shard, entry.n_shards, part, entry.n_parts))
        source, shard, part = last, shard + entry.n_shards, part + entry.n_parts
    return builds


def builds_by_shard(manifest: Manifest) -> list[Build]:
    """The build that made each shard, in the order of the shards."""
    return [build for build in builds_of(manifest) for _ in build.shards]


def joined_identity(identities: list[dict[str, Any]]) -> dict[str, Any]:
    """The identity of datasets of one recipe put together; an only one stays as it is."""
    first = identities[0]
    if len(identities) == 1:
        return first
    own = [
        build
        for identity in identities
        for build in identity.get("builds", [_without_shared(identity)])
    ]
    return {"format": first["format"], "recipe": first["recipe"], "builds": own}


def _without_shared(identity: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in ("format", "recipe")}
