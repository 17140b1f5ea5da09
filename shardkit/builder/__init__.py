"""Plan, parts, commit: from raw files to a dataset."""

from shardkit.builder.append import append
from shardkit.builder.build import Progress
from shardkit.builder.engines import ENGINES
from shardkit.builder.merge import merge, merge_datasets
from shardkit.builder.options import PackOptions
from shardkit.builder.pack import pack
from shardkit.builder.plan import Plan, make_plan
from shardkit.builder.repacking import repack

__all__ = [
    "ENGINES",
    "PackOptions",
    "Plan",
    "Progress",
    "append",
    "make_plan",
    "merge",
    "merge_datasets",
    "pack",
    "repack",
]
