"""The whole state of a loader: a few integers, the same on every rank (docs/format.md, 8.5)."""

from __future__ import annotations

from typing import Any

import msgspec

from shardkit.errors import StateMismatch
from shardkit.order.epoch import Shuffle

STATE_VERSION = 1


class LoaderState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is. `position`: samples served in this epoch, by all ranks together."""

    version: int = STATE_VERSION
    fingerprint: str
    content: str
    seed: int
    epoch: int
    position: int
    lanes: int
    chunk: int
    shuffle: Shuffle
    window: int
    group: int = 0
    """Positions among which samples were sorted by length; 0: they were not."""
    tokens_per_image: int = 1
    """What an image counted when samples were sorted."""
    global_batch: int
    """Rows of one step, all ranks together: another one may follow, but is told."""

    def to_dict(self) -> dict[str, Any]:
        """The state as integers and strings: JSON, pickle and torch.save all keep it."""
        return msgspec.structs.asdict(self)

    @classmethod
    def from_dict(cls, state: object) -> LoaderState:
        """The state again; raises StateMismatch when it is not one."""
        version = state.get("version") if isinstance(state, dict) else None
        if version != STATE_VERSION:
            raise StateMismatch(
                "this is not the state of a shardkit loader",
                expected=f"a dict with version {STATE_VERSION}",
                found=f"{type(state).__name__} with version {version}",
                fix="Pass what ShardLoader.state_dict() returned.",
            )
        try:
            return msgspec.convert(state, cls)
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
