"""Where a run is in its epoch: what a checkpoint keeps (docs/format.md, section 8).

The whole state of a loader is a few integers, the same on every rank.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Literal

import msgspec

from shardkit.errors import StateMismatch
from shardkit.order.arrangement import Arrangement, FromOne, FromZero
from shardkit.order.epoch import Shuffle

STATE_VERSION = 2
"""1 was that of datasets from before format 1.0 was fixed, which nothing reads any more."""


class LoaderState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is. `position`: samples served in this epoch, by all ranks together."""

    version: int = STATE_VERSION
    fingerprint: str
    content: str
    epoch: FromZero
    position: FromZero
    arrangement: Arrangement
    global_batch: FromOne
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
    seed: FromZero
    shuffle: Shuffle
    window: FromOne
    epoch: FromZero
    n_shares: FromOne
    """Ranks times workers, among which the epoch is dealt out."""
    n_served: FromZero
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
