"""How a run was set up: what decides which rank sees which sample at which step."""

from __future__ import annotations

from dataclasses import dataclass

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.order.epoch import DEFAULT_WINDOW, EpochOrder, Shuffle, n_steps
from shardkit.order.state import LoaderState


@dataclass(frozen=True, slots=True)
class Topology:
    """A run of ShardLoader, from the start of an epoch or from a saved state on."""

    world_size: int
    batch_size: int
    seed: int = 0
    epoch: int = 0
    shuffle: Shuffle | None = None
    """None: the loader's default, `window` for compressed or remote shards, else `full`."""
    window: int = DEFAULT_WINDOW
    lanes: int | None = None
    """None: one for each rank, the loader's default."""
    chunk: int | None = None
    """None: the batch size, as at the first start of a run."""
    origin: int = 0
    """Position of the epoch where step 0 begins: not 0 after a resume in mid-epoch."""
    drop_last: bool = True

    @property
    def global_batch_size(self) -> int:
        """Rows of one step, of all ranks."""
        return self.batch_size * self.world_size

    def order(self, dataset: Dataset) -> EpochOrder:
        """The epoch's order for this topology."""
        return EpochOrder(
            dataset.manifest.sizes,
            seed=self.seed,
            epoch=self.epoch,
            lanes=self.lanes or self.world_size,
            chunk=self.chunk or self.batch_size,
            shuffle=self.shuffle or ("window" if dataset.prefers_window else "full"),
            window=self.window,
        )

    def n_steps(self, dataset: Dataset) -> int:
        """Steps from `origin` to the end of the epoch."""
        return n_steps(
            max(0, dataset.manifest.n_samples - self.origin),
            batch_size=self.batch_size,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )


def topology_of_state(
    dataset: Dataset,
    state: object,
    *,
    world_size: int,
    batch_size: int,
    epoch: int | None = None,
    drop_last: bool = True,
) -> Topology:
    """The run that continues from `state`, what ShardLoader.state_dict() returned.

    `world_size` and `batch_size` are those after the resume. In the epoch of the state (`epoch`
    None) step 0 is the first one after the resume; later epochs begin at their start.
    Raises StateMismatch when the state is of another dataset, UsageError for an epoch before it
    and for batches of like length.
    """
    loaded = LoaderState.from_dict(state)
    manifest = dataset.manifest
    loaded.check_dataset(dataset.root, manifest.fingerprint, manifest.content)
    if loaded.group:
        raise UsageError(
            "a run with group_by_length cannot be traced from the manifest",
            fix="Let the loader name its rows: ShardLoader(sample_keys=True).",
        )
    at, origin = loaded.epoch, loaded.position
    rest = max(0, manifest.n_samples - origin)
    if origin and not n_steps(
        rest, batch_size=batch_size, world_size=world_size, drop_last=drop_last
    ):
        at, origin = at + 1, 0
    if epoch is not None and epoch < at:
        raise UsageError(
            "the epoch is before the state",
            expected=f"an epoch from {at}",
            found=str(epoch),
            fix="Trace it with the state, world size and batch size that the run had then.",
        )
    return Topology(
        world_size=world_size,
        batch_size=batch_size,
        seed=loaded.seed,
        epoch=at if epoch is None else epoch,
        shuffle=loaded.shuffle,
        window=loaded.window,
        lanes=loaded.lanes,
        chunk=loaded.chunk,
        origin=origin if epoch in (None, at) else 0,
        drop_last=drop_last,
    )
