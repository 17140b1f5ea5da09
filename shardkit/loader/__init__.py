"""From a packed dataset to the batches of a training run. torch lives here."""

from shardkit.loader.dataset import ShardDataset
from shardkit.loader.loader import ShardLoader
from shardkit.loader.mixture import ShardMixture
from shardkit.loader.table import ShardTable

__all__ = ["ShardDataset", "ShardLoader", "ShardMixture", "ShardTable"]
