"""How a run was set up: what decides which rank sees which sample at which step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from shardkit.dataset import default_shuffle
from shardkit.errors import UsageError
from shardkit.order.arrangement import Arrangement
from shardkit.order.balanced import Balance, Costs
from shardkit.order.by_length import Lengths, Order, group_size
from shardkit.order.cost import DEFAULT_WEIGHTS, Weights
from shardkit.order.epoch import DEFAULT_WINDOW, Shuffle, batch_positions, n_steps
from shardkit.order.mixture import VANILLA_BLOCK
from shardkit.order.permute import U64
from shardkit.order.state import LoaderState
from shardkit.report.data import Data, Members, Mixture


@dataclass(frozen=True, slots=True)
class Topology:
    """A run of ShardLoader, from the start of an epoch or from a saved state on.

    Or, with `data_loader_workers`, of ShardDataset under torch's DataLoader.
    """

    world_size: int
    batch_size: int
    seed: int = 0
    epoch: int = 0
    shuffle: Shuffle | None = None
    """How samples are shuffled; None: the loader's default, `window` for compressed or remote
    shards, else `full`."""
    window: int = DEFAULT_WINDOW
    lanes: int | None = None
    """Lanes of the epoch's sequence; None: one for each rank, the loader's default."""
    chunk: int | None = None
    """Samples that a lane gives at once; None: the batch size (of a mixture, the global one), as at
    the first start of a run."""
    origin: int = 0
    """Position of the epoch where step 0 begins: not 0 after a resume in mid-epoch."""
    drop_last: bool = True
    group_by_length: bool = False
    group: int | None = None
    """Positions of a group of like length. None: as at the first start of a run."""
    balance: Balance | None = None
    """How a run with balance="cost" laid samples out."""
    data_loader_workers: int | None = None
    """`num_workers` of a plain DataLoader over ShardDataset; None: the run used ShardLoader."""

    @property
    def global_batch_size(self) -> int:
        """Rows of one step, of all ranks."""
        return self.batch_size * self.world_size

    @property
    def is_plain(self) -> bool:
        """Whether the run read through a plain DataLoader."""
        return self.data_loader_workers is not None

    def n_steps(self, data: Data) -> int | None:
        """Steps from `origin` to the end of the epoch; None when it never ends."""
        return Run(self, data).n_steps


@dataclass(frozen=True)
class Run:
    """A topology with the data that it reads: which position is whose, and when."""

    topology: Topology
    data: Data

    @cached_property
    def members(self) -> Members:
        """The datasets."""
        return Members(self.data)

    @cached_property
    def n_samples(self) -> int | None:
        """Samples of the epoch; None when it never ends."""
        return self.plain_order.n_samples

    @cached_property
    def order(self) -> Order:
        """The epoch's sequence, its groups sorted or laid out as the topology says."""
        return self.grouped(self.plain_order, self.members.lengths, self.members.costs)

    def grouped(self, plain: Order, lengths: Lengths, costs: Callable[[Weights], Costs]) -> Order:
        """The epoch's sequence from `plain`, its groups sorted or laid out as the topology says."""
        topology, group = self.topology, self.topology.group
        if group is None:
            size = topology.global_batch_size
            is_grouped = topology.group_by_length or topology.balance is not None
            group = group_size(plain.n_samples, size) if is_grouped else 0
        balance = topology.balance
        arrangement = replace(self._arrangement, group=group, balance=balance)
        weights = DEFAULT_WEIGHTS if balance is None else balance.weights
        return arrangement.grouped(plain, topology.epoch, lengths, costs(weights))

    @cached_property
    def n_steps(self) -> int | None:
        """Steps from `origin` to the end of the epoch; None when it never ends."""
        if self.n_samples is None:
            return None
        rows = self.topology.batch_size
        if not self.topology.is_plain:
            return self._n_each(rows)
        own, workers = self._n_each(1), self._workers
        of_workers = [-(-max(0, own - worker) // workers) for worker in range(workers)]
        return sum(-(-of_one // rows) for of_one in of_workers)

    @cached_property
    def end(self) -> int | None:
        """The first position that no step holds; None when there is no end."""
        if self.n_samples is None or not self.topology.drop_last:
            return self.n_samples
        rows = 1 if self.topology.is_plain else self.topology.batch_size
        return self.topology.origin + self._n_each(rows) * rows * self.topology.world_size

    def positions(self, step: int, rank: int) -> U64:
        """The positions of the samples in the batch of a rank at a step."""
        topology, rows = self.topology, self.topology.batch_size
        if topology.is_plain:
            turn, worker = divmod(step, self._workers)
            own = worker + self._workers * np.arange(turn * rows, (turn + 1) * rows)
            positions = (own * topology.world_size + rank).astype(np.uint64)
        else:
            place = {"batch_size": rows, "rank": rank, "world_size": topology.world_size}
            positions = batch_positions(step, 1, origin=topology.origin, **place)[0]
        return positions if self.end is None else positions[positions < np.uint64(self.end)]

    def place(self, position: int) -> tuple[int, int, int]:
        """The step, the rank and the row in the batch of a position."""
        topology = self.topology
        if not topology.is_plain:
            step, within = divmod(position - topology.origin, topology.global_batch_size)
            return step, *divmod(within, topology.batch_size)
        own, rank = divmod(position, topology.world_size)
        number, worker = divmod(own, self._workers)
        turn, slot = divmod(number, topology.batch_size)
        return turn * self._workers + worker, rank, slot

    @property
    def _workers(self) -> int:
        """Processes among which a plain DataLoader deals out the samples of a rank, in turn."""
        return max(1, self.topology.data_loader_workers or 0)

    @cached_property
    def plain_order(self) -> Order:
        """The epoch's sequence, its groups neither sorted nor laid out."""
        return self.members.order(self._arrangement, self.topology.epoch)

    @cached_property
    def _arrangement(self) -> Arrangement:
        """The arrangement as the loader chooses it for a new run, where the topology has none."""
        topology, is_mixture = self.topology, isinstance(self.data, Mixture)
        chunk = topology.global_batch_size if is_mixture else topology.batch_size
        lanes = topology.world_size * (self._workers if topology.is_plain else 1)
        if topology.is_plain:
            chunk = VANILLA_BLOCK if is_mixture else 1
        return Arrangement(
            seed=topology.seed,
            lanes=1 if is_mixture else topology.lanes or lanes,
            chunk=topology.chunk or chunk,
            shuffle=topology.shuffle or default_shuffle(self.members.datasets),
            window=topology.window,
        )

    def _n_each(self, rows: int) -> int:
        """How many times each rank takes `rows` samples of those from `origin` on."""
        return n_steps(
            max(0, (self.n_samples or 0) - self.topology.origin),
            batch_size=rows,
            world_size=self.topology.world_size,
            drop_last=self.topology.drop_last,
        )


def topology_of_state(
    data: Data,
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
    Raises StateMismatch when the state is of other data, UsageError for an epoch before it.
    """
    loaded = LoaderState.from_dict(state)
    arrangement, members = loaded.arrangement, Members(data)
    loaded.check_dataset(members.root, members.fingerprint, members.content)
    here = Topology(
        world_size=world_size,
        batch_size=batch_size,
        seed=arrangement.seed,
        epoch=loaded.epoch,
        shuffle=arrangement.shuffle,
        window=arrangement.window,
        lanes=arrangement.lanes,
        chunk=arrangement.chunk,
        origin=loaded.position,
        drop_last=drop_last,
        group=arrangement.group,
        balance=arrangement.balance,
    )
    if here.origin and here.n_steps(data) == 0:
        here = replace(here, epoch=here.epoch + 1, origin=0)
    if epoch is None or epoch == here.epoch:
        return here
    if epoch < here.epoch:
        raise UsageError(
            "the epoch is before the state",
            expected=f"an epoch from {here.epoch}",
            found=str(epoch),
            fix="Trace it with the state, world size and batch size that the run had then.",
        )
    return replace(here, epoch=epoch, origin=0)
