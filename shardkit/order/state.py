"""What decides the order of every epoch, and where a run is in it (docs/format.md, section 8).

The whole state of a loader is a few integers, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.errors import StateMismatch
from shardkit.order.balanced import Balance, BalancedOrder, Costs
from shardkit.order.by_length import GroupedOrder, Lengths, Order
from shardkit.order.epoch import DEFAULT_WINDOW, EpochOrder, Shuffle
from shardkit.order.mixture import MixtureOrder, Until

_FromZero = Annotated[int, msgspec.Meta(ge=0)]
_FromOne = Annotated[int, msgspec.Meta(ge=1)]

STATE_VERSION = 2
"""1 was that of datasets from before format 1.0 was fixed, which nothing reads any more."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What decides the order for all ranks and epochs of a run; a resumed run keeps it."""

    seed: _FromZero = 0
    lanes: _FromOne = 1
    chunk: _FromOne = 1
    """Positions that a lane has in turn; of a mixture, those of its block."""
    shuffle: Shuffle = "full"
    window: _FromOne = DEFAULT_WINDOW
    group: _FromZero = 0
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


class LoaderState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is. `position`: samples served in this epoch, by all ranks together."""

    version: int = STATE_VERSION
    fingerprint: str
    content: str
    epoch: _FromZero
    position: _FromZero
    arrangement: Arrangement
    global_batch: _FromOne
    """Rows of one step, all ranks together: for a message when a run goes on with another number.
    """

    def to_dict(self) -> dict[str, Any]:
        """The state as integers, strings and, for `balance`, a dict: JSON, pickle and torch.save
        all keep it. The fields of the arrangement stand beside the others.
        """
        own = msgspec.structs.asdict(self)
        arrangement = own.pop("arrangement")
        flat = own | asdict(arrangement)
        if arrangement.balance is None:
            del flat["balance"]
        return flat

    @classmethod
    def from_dict(cls, state: object) -> LoaderState:
        """The state that `to_dict` gave; raises StateMismatch when it is not one."""
        version = state.get("version") if isinstance(state, dict) else None
        if version == 1:
            raise StateMismatch(
                "the state of a loader from before format 1.0 was fixed",
                expected=f"version {STATE_VERSION}",
                found="version 1",
                fix="Its dataset is to be packed again as well: begin the epoch anew with that.",
            )
        if not isinstance(state, dict) or version != STATE_VERSION:
            raise StateMismatch(
                "this is not the state of a shardkit loader",
                expected=f"a dict with version {STATE_VERSION}",
                found=f"{type(state).__name__} with version {version}",
                fix="Pass what ShardLoader.state_dict() returned.",
            )
        try:
            arrangement = {name: state[name] for name in _ARRANGEMENT if name in state}
            return msgspec.convert({**state, "arrangement": arrangement}, cls)
        except msgspec.ValidationError as err:
            raise StateMismatch(
                str(err), where="loader state", fix="Pass what ShardLoader.state_dict() returned."
            ) from err

    def check_dataset(self, where: object, fingerprint: str, content: str) -> None:
        """Raise StateMismatch when the state is not of the dataset at `where`."""
        for name, expected in (("fingerprint", fingerprint), ("content", content)):
            found = getattr(self, name)
            if found != expected:
                raise StateMismatch(
                    f"the state of another dataset: its {name} differs",
                    where=str(where),
                    expected=expected,
                    found=found,
                    fix="Load the state that was saved with this dataset, or start from epoch 0.",
                )


class ShareState(msgspec.Struct, frozen=True, kw_only=True):
    """Where one DataLoader worker of one rank is among its own samples, under ShardDataset."""

    kind: Literal["share"] = "share"
    version: int = STATE_VERSION
    fingerprint: str
    content: str
    seed: _FromZero
    shuffle: Shuffle
    window: _FromOne
    epoch: _FromZero
    n_shares: _FromOne
    """Ranks times workers, among which the epoch is dealt out."""
    n_served: _FromZero
    """Samples of this worker's share that were handed out."""

    @classmethod
    def from_dict(cls, state: object) -> ShareState:
        """The state from its fields; raises StateMismatch when it is not one."""
        try:
            return msgspec.convert(state, cls)
        except msgspec.ValidationError as err:
            raise StateMismatch(
                f"this is not the state of a ShardDataset: {err}",
                fix="Pass what ShardDataset.state_dict() returned. A ShardLoader's state goes to a "
                "ShardLoader.",
            ) from err

    def refuse_other(self, now: ShareState, where: str) -> None:
        """Raise StateMismatch when it is of other data, in another order, or shared out otherwise.

        `now`: the state of the dataset that is to go on; `where`: its path or URL.
        """
        for name in ("version", "fingerprint", "content", "seed", "shuffle", "window", "n_shares"):
            ours, theirs = getattr(now, name), getattr(self, name)
            if ours != theirs:
                raise StateMismatch(
                    f"the state was saved with another {name}",
                    where=where,
                    expected=str(ours),
                    found=str(theirs),
                    fix="Load it into the same dataset with the same options, ranks and workers. "
                    "ShardLoader's state may go on with others.",
                )


_ARRANGEMENT = tuple(field.name for field in fields(Arrangement))
