"""Which mixture of datasets is it? Two hashes, as a dataset has them (docs/format.md, 8.7)."""

from __future__ import annotations

from collections.abc import Sequence

from shardkit.format.canonical import sha256_of
from shardkit.format.manifest import Manifest


def fingerprint_of_mixture(manifests: Sequence[Manifest], weights: Sequence[int], end: str) -> str:
    """Of what made the samples of all members, their weights and the end of an epoch."""
    return sha256_of([[manifest.fingerprint for manifest in manifests], weights, end])


def content_of_mixture(manifests: Sequence[Manifest]) -> str:
    """Of what the shards of all members hold."""
    return sha256_of([manifest.content for manifest in manifests])
