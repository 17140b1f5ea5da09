"""What a run read: one dataset, or several by weight, with shards numbered as its loaders do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.format.manifest import content_of_mixture, fingerprint_of_mixture
from shardkit.order.arrangement import Arrangement
from shardkit.order.by_length import Order
from shardkit.order.cost import Weights, costs_of
from shardkit.order.mixture import Until, integer_weights
from shardkit.order.permute import U64


@dataclass(frozen=True)
class Mixture:
    """Several datasets as ShardMixture takes them, in its order and with its weights."""

    datasets: Sequence[Dataset]
    weights: Sequence[float]
    until: Until = "first"

    def __post_init__(self) -> None:
        if len(self.datasets) != len(self.weights) or min(self.weights, default=0) <= 0:
            raise UsageError(
                "a mixture has a weight above 0 for each dataset",
                expected=f"{len(self.datasets)} weights",
                found=" ".join(map(str, self.weights)),
                fix="Give those of the run, in the order of the datasets.",
            )


Data = Dataset | Mixture


@dataclass(frozen=True)
class Members:
    """The datasets of a run; their shards are numbered through."""

    data: Data

    @cached_property
    def datasets(self) -> Sequence[Dataset]:
        """The datasets: one or several."""
        return self.data.datasets if isinstance(self.data, Mixture) else [self.data]

    @property
    def root(self) -> str:
        """Where the first dataset is, for messages."""
        return self.datasets[0].root

    @property
    def fingerprint(self) -> str:
        """The sha256 of what made the samples, as the loader's state has it."""
        manifests = [dataset.manifest for dataset in self.datasets]
        if isinstance(self.data, Mixture):
            weights = integer_weights(self.data.weights)
            return fingerprint_of_mixture(manifests, weights, self.data.until)
        return manifests[0].fingerprint

    @property
    def content(self) -> str:
        """The sha256 of what the shards hold, as the loader's state has it."""
        manifests = [dataset.manifest for dataset in self.datasets]
        if isinstance(self.data, Mixture):
            return content_of_mixture(manifests)
        return manifests[0].content

    def order(self, arrangement: Arrangement, epoch: int) -> Order:
        """The sequence of an epoch, not sorted by length."""
        sizes = [dataset.manifest.sizes for dataset in self.datasets]
        if isinstance(self.data, Mixture):
            weights = integer_weights(self.data.weights)
            return arrangement.mixture_epoch(epoch, sizes, weights, self.data.until)
        return arrangement.epoch(epoch, sizes[0])

    def first_shard(self, member: int) -> int:
        """The number that a member's first shard has."""
        return sum(len(dataset.manifest.shards) for dataset in self.datasets[:member])

    def place(self, number: int) -> tuple[int, int]:
        """The member that a shard belongs to, and its number there."""
        member = 0
        while number >= len(self.datasets[member].manifest.shards):
            number -= len(self.datasets[member].manifest.shards)
            member += 1
        return member, number

    def costs(self, weights: Weights) -> Callable[[NDArray[np.int64], NDArray[np.int64]], U64]:
        """Costs of samples from the indexes of their shards, for these weights."""

        def costs(shards: NDArray[np.int64], rows: NDArray[np.int64]) -> U64:
            found = np.empty(len(rows), np.uint64)
            for number in np.unique(shards).tolist():
                member, own = self.place(number)
                shard, here = self.datasets[member].open_shard(own), shards == number
                found[here] = costs_of(shard.index[rows[here]], weights)
                shard.close()
            return found

        return costs

    def lengths(
        self, shards: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) places in the model, and images, of samples, from the indexes of their shards."""
        lengths, n_images = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for number in np.unique(shards).tolist():
            member, own = self.place(number)
            shard, here = self.datasets[member].open_shard(own), shards == number
            lengths[here] = shard.index["length"][rows[here]]
            n_images[here] = shard.index["n_images"][rows[here]]
            shard.close()
        return lengths, n_images
