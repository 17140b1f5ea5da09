"""Which order the epochs of a run have, by its options (docs/format.md, section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.order.balanced import Balance, BalancedOrder, Costs
from shardkit.order.by_length import GroupedOrder, Lengths, Order
from shardkit.order.epoch import DEFAULT_WINDOW, EpochOrder, Shuffle
from shardkit.order.mixture import MixtureOrder, Until

FromZero = Annotated[int, msgspec.Meta(ge=0)]
FromOne = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What decides the order for all ranks and epochs of a run; a resumed run keeps it."""

    seed: FromZero = 0
    lanes: FromOne = 1
    chunk: FromOne = 1
    """Positions that a lane has in turn; of a mixture, those of its block."""
    shuffle: Shuffle = "full"
    window: FromOne = DEFAULT_WINDOW
    group: FromZero = 0
    """Positions among which samples are sorted by length, or by cost; 0: they are not."""
    balance: Balance | None = None
    """How samples of a group are laid out by cost; None: by length, if there are groups."""

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

    def grouped(self, order: Order, epoch: int, lengths: Lengths, costs: Costs) -> Order:
        """The order of an epoch itself, or its groups sorted by length or laid out by cost."""
        if not self.group:
            return order
        if self.balance is not None:
            return BalancedOrder(
                order,
                costs,
                self.balance,
                group=self.group,
                lanes=self.lanes,
                chunk=self.chunk,
                seed=self.seed,
                epoch=epoch,
            )
        return GroupedOrder(
            order,
            lengths,
            group=self.group,
            lanes=self.lanes,
            chunk=self.chunk,
        )
