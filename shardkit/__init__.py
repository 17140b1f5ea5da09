"""shardkit: tokenised tar shards that prove what they are, streamed to every rank by arithmetic.

    raw files ──sources──► conversations ──tokens──► samples ──format──► shards + manifest.json
                                     builder leads it            check, report look at it
    shards ──storage──► local files ──loader (order says which rows)──► batches ──integrations──►

Imports go one way: `integrations` ► `builder`, `check`, `report`, `loader` ► `sources`, `tokens`,
`processors`, `images` ► `format`, `order`, `storage` ► `errors`. To read it all, begin with
`format`, then `order`; each package says in which order its modules are read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from shardkit.errors import ShardkitError
from shardkit.version import __version__

if TYPE_CHECKING:
    from shardkit.builder import pack
    from shardkit.check import verify
    from shardkit.dataset import load_manifest
    from shardkit.format.manifest import Manifest
    from shardkit.loader import ShardDataset, ShardLoader, ShardMixture, ShardTable

__all__ = [
    "Manifest",
    "ShardDataset",
    "ShardLoader",
    "ShardMixture",
    "ShardTable",
    "ShardkitError",
    "__version__",
    "load_manifest",
    "pack",
    "verify",
]

_HOMES = {
    "Manifest": "shardkit.format.manifest",
    "ShardDataset": "shardkit.loader",
    "ShardLoader": "shardkit.loader",
    "ShardMixture": "shardkit.loader",
    "ShardTable": "shardkit.loader",
    "load_manifest": "shardkit.dataset",
    "pack": "shardkit.builder",
    "verify": "shardkit.check",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shardkit' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
