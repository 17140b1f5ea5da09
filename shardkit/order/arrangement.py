"""What decides the order of every epoch, beside the data (docs/format.md, section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.order.by_length import GroupedOrder, Lengths, Order
from shardkit.order.epoch import DEFAULT_WINDOW, EpochOrder, Shuffle
from shardkit.order.mixture import MixtureOrder, Until


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The same for all ranks and epochs of a run; a resumed run keeps it."""

    seed: int = 0
    lanes: int = 1
    chunk: int = 1
    """Of a mixture: its block."""
    shuffle: Shuffle = "full"
    window: int = DEFAULT_WINDOW
    group: int = 0
    """Positions among which samples are sorted by length; 0: they are not."""
    tokens_per_image: int = 1
    """What an image counts when samples are sorted by length."""

    def epoch(self, epoch: int, sizes: NDArray[np.int64]) -> EpochOrder:
        """The sequence of an epoch of one dataset, not sorted; `sizes`: samples of each shard."""
        return EpochOrder(
            sizes,
            seed=self.seed,
            epoch=epoch,
            lanes=self.lanes,
            chunk=self.chunk,
            shuffle=self.shuffle,
            window=self.window,
        )

    def mixture_epoch(
        self,
        epoch: int,
        sizes: Sequence[NDArray[np.int64]],
        weights: tuple[int, ...],
        until: Until,
    ) -> MixtureOrder:
        """The sequence of an epoch of a mixture, not sorted; `sizes` of each member."""
        return MixtureOrder(
            sizes=tuple(sizes),
            weights=weights,
            seed=self.seed,
            epoch=epoch,
            block=self.chunk,
            shuffle=self.shuffle,
            window=self.window,
            until=until,
        )

    def grouped(self, order: Order, lengths: Lengths) -> Order:
        """The order itself, or its groups sorted by length."""
        if not self.group:
            return order
        return GroupedOrder(
            order,
            lengths,
            group=self.group,
            lanes=self.lanes,
            chunk=self.chunk,
            tokens_per_image=self.tokens_per_image,
        )
