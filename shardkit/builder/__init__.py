"""Plan, parts, commit: from raw files to a dataset, the same bytes whoever builds it.

    options ► plan ──saved_plan──► engines ──Job──► part, part, ... ──receipts──► commit ► manifest
              (scan, identity)     local, Ray       (rows to shards)              (join, ledger)

Read `options`, `plan`, `part`, `receipt`, `commit`, then `pack`, which calls them in this order,
and `build`, `job`, `build_engines`, `fork_server`, `ray_engine`: who builds parts. A part depends
on no other part, and its receipt is written last, so that any run goes on where another was killed.
`scanning` finds the rows of inputs, `texts` what makes ids of them, `pictures` looks at those of a
part, and `whole` is the second pass of packs over a whole input.

Of finished datasets: `append`, `merge` and `join` (manifests alone), `repair` (some shards again),
`repacking` (`stretches`, `recut`, `gather`: other rows from the same tokens). `folder`, `sealed`
and `upload` are about the output; `preview` about the first rows.
"""

from shardkit.builder.append import append
from shardkit.builder.build import Progress
from shardkit.builder.build_engines import ENGINES
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
