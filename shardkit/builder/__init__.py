"""Plan, parts, commit: from raw files to a dataset."""

from shardkit.builder.options import PackOptions
from shardkit.builder.pack import Progress, pack
from shardkit.builder.plan import Plan, make_plan

__all__ = ["PackOptions", "Plan", "Progress", "make_plan", "pack"]
