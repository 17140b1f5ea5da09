"""From a packed dataset to the batches of a training run. torch lives here.

    world (who am I?) ► dataset ► batches (which rows) ► reader ► collate ► images or vision ► batch
                          │          order's arithmetic     │
                       opened (is it what was meant?)    lookup, open_shards, frames, fetch

Read `options`, `opened`, `dataset` (and `mixture`, several of them), `batches`, `reader` with
`lookup` and `open_shards`, `collate`, then `iteration` and `loader`, which hand batches out and
keep the place. `workers` and `prefetch` carry batches over processes and threads; `stats` says
where a run waits; `table` is for map-style code.

A batch: `batch_maker` pads rows, or with `pairs` those of preferences; `picture_stage` is what
`images` and `vision` share; `model_inputs` is what a model takes of it, `counts` what a step of the
optimizer counts.
"""

from shardkit.loader.dataset import ShardDataset
from shardkit.loader.loader import ShardLoader
from shardkit.loader.mixture import ShardMixture
from shardkit.loader.table import ShardTable

__all__ = ["ShardDataset", "ShardLoader", "ShardMixture", "ShardTable"]
