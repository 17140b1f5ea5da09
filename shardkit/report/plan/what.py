"""What is asked of a plan, and what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from shardkit.errors import UsageError
from shardkit.order.balanced import Scope
from shardkit.order.cost import DEFAULT_WEIGHTS, Weights
from shardkit.order.epoch import Shuffle

FEWEST_STEPS = 20
"""A straggler factor is said of an epoch of so many steps or more: below that it is chance."""
MOST_RUNS = 100
"""Runs that a plan compares, at most."""
WORTH_IT = 0.02
"""Balance is recommended from where steps would be this share shorter."""


@dataclass(frozen=True, slots=True)
class Varied:
    """Values that a plan compares: every combination of them is one run."""

    world_sizes: tuple[int, ...] = (1, 8, 64)
    batch_sizes: tuple[int, ...] = (1,)
    workers: tuple[int, ...] = (0,)
    max_lengths: tuple[int | None, ...] = (None,)
    """Rows as `shardkit repack` would make them at this length, about; None: as they are."""
    packings: tuple[str | None, ...] = (None,)

    def __post_init__(self) -> None:
        if len(self.runs) > MOST_RUNS:
            raise UsageError(
                "too many runs to compare",
                expected=f"at most {MOST_RUNS}",
                found=str(len(self.runs)),
                fix="Give fewer values of --world-size, --batch-size, --workers ...",
            )

    @property
    def runs(self) -> list[tuple[int | None, str | None, int, int, int]]:
        """(max length, packing, ranks, rows a rank, workers) of each run."""
        rows = product(self.max_lengths, self.packings)
        machines = [*product(self.world_sizes, self.batch_sizes, self.workers)]
        return [(*how, *machine) for how in rows for machine in machines]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What all runs of a plan share: the loader's options, and the machines."""

    seed: int = 0
    epoch: int = 0
    shuffle: Shuffle | None = None
    """How the loader shuffles; None: its default."""
    drop_last: bool = True
    pad_to_multiple_of: int = 1
    group_by_length: bool = False
    balance: bool = False
    scope: Scope | None = None
    """The scope of `balance`; None: `group` for local data, `lanes` for remote data."""
    weights: Weights = DEFAULT_WEIGHTS
    """What a token, a squared token and an image token cost."""
    accumulation: int = 1
    """Steps after which the ranks wait for each other."""
    ranks_per_node: int = 8
    bandwidth: float = 100e6
    """Bytes a second that a node gets from a URL."""
    shards: int | None = None
    """Shards whose indexes are read; None: all, of a URL 8, of a very large dataset some."""
    max_rows: int = 1 << 20
    """Rows of an epoch that are looked at; of a longer one some groups of steps are."""
    with_balance: bool = True
    """Whether the straggler factor is also found as balance="cost" would make it."""

    def __post_init__(self) -> None:
        if self.balance and self.group_by_length:
            raise UsageError(
                "group_by_length and balance are two orders of one group", fix="Give one of them."
            )

    def scope_of(self, is_local: bool) -> Scope | Literal["length"] | None:
        """How the samples of a group change places; None: they do not."""
        if self.group_by_length:
            return "length"
        if not self.balance:
            return None
        return self.scope or ("group" if is_local else "lanes")

    def name_of(self, is_local: bool) -> str:
        """How the straggler factors of a run are called."""
        scope = self.scope_of(is_local)
        return {None: "random", "length": "by length"}.get(scope, str(scope))


@dataclass(frozen=True, slots=True)
class Reads:
    """What the busiest node reads in an epoch, and what its first batch waits for."""

    n_bytes: int
    """Bytes: of a URL those of whole shards, once each; else of the samples of the node's ranks."""
    n_shards: int | None
    """Shards that the node's ranks touch; None where only some steps were looked at, or the shards
    are not made yet."""
    first_batch_s: float
    """Seconds that a rank waits for its first batch: an estimate (docs/how-to/plan.md)."""
    first_batch_shards: int
    """Shards whose index, of a URL whose file, a rank needs before its first batch."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: its steps, and what a step is."""

    world_size: int
    batch_size: int
    workers: int
    max_length: int | None
    packing: str
    n_rows: int | None
    """Samples or packs of an epoch; None for an endless mixture."""
    n_steps: int | None
    n_left_over: int
    """Rows that the dropped last batch holds; with drop_last=False, rows that pad it."""
    n_simulated: int
    """Steps that were looked at."""
    tokens_a_step: float
    """Places of documents in the model, pictures expanded, all ranks together."""
    supervised_a_step: float
    """Labels that are not -100."""
    pictures_a_step: float
    padding: float
    """Share of the places of all batches that hold no document."""
    straggler: float | None
    """Cost of each step's dearest rank over the mean, summed over the steps; None below 20."""
    stragglers: dict[str, float] = field(default_factory=dict)
    """`straggler` in a random order (`random`), and with balance="cost" by its scope."""
    batch_bytes: int = 0
    """Bytes of the int64 tensors of a rank's largest batch."""
    pixel_bytes: int | None = None
    """Bytes of the pictures of the batch with most of them, as float32; None: size not known."""
    n_ahead: int = 0
    """Batches of a rank that wait to be taken, at most."""
    reads: Reads | None = None

    @property
    def memory(self) -> int:
        """Bytes of the batches of a rank that exist at once, at most."""
        return (self.n_ahead + 1) * (self.batch_bytes + (self.pixel_bytes or 0))

    @property
    def best(self) -> tuple[str, float] | None:
        """The scope of balance that is best, and its straggler factor."""
        found = {name: value for name, value in self.stragglers.items() if name != "random"}
        return min(found.items(), key=lambda item: item[1]) if found else None

    @property
    def gain(self) -> float:
        """How much shorter the steps would be with the best balance, as a share."""
        best = self.best
        return 0.0 if self.straggler is None or best is None else 1 - best[1] / self.straggler


@dataclass(frozen=True, slots=True)
class Plan:
    """Some runs over the same data, side by side."""

    root: str
    n_shards: int
    n_shards_read: int
    """Shards whose indexes were read; lengths of the others are taken to be like these."""
    is_local: bool
    runs: list[PlannedRun]
    advice: list[str]
    notes: list[str]
