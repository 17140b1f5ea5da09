"""From a dataset or a mixture and some values to compare, to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from shardkit.dataset import Dataset, batches_ahead
from shardkit.errors import UsageError
from shardkit.format.recipe import PREFERENCE, SFT, RowRules
from shardkit.order.balanced import Balance, Scope
from shardkit.order.by_length import Order
from shardkit.order.epoch import EpochOrder, n_steps
from shardkit.report.data import Data, Members, Mixture
from shardkit.report.plan.advice import advice_on, notes_on
from shardkit.report.plan.remade import remade
from shardkit.report.plan.rows import Ints, Rows, read_rows
from shardkit.report.plan.simulate import (
    Steps,
    chosen_steps,
    first_batch,
    look,
    straggler,
    widths_of,
)
from shardkit.report.plan.what import FEWEST_STEPS, Plan, PlannedRun, PlanOptions, Reads, Varied
from shardkit.report.topology import Run, Topology

Progress = Callable[[int, int], None]
"""Called with (shards read, shards to read), then with (runs done, runs)."""
_ENDLESS_STEPS = 500
"""Steps of an endless mixture that are looked at."""


@dataclass(frozen=True)
class _Laid:
    """The rows as they are, or made anew with other lengths or packs."""

    rows: Rows
    sizes: Ints | None
    """Samples of each shard where rows are made anew; None: as they are."""
    is_packed: bool
    share: float = 1.0
    """Places in the model of the rows made anew, over those of the rows as they are."""


def make_plan(
    data: Data,
    varied: Varied | None = None,
    options: PlanOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Plan:
    """Simulate the runs of `varied` over the data; see docs/how-to/plan.md for the figures.

    Raises UsageError, CorruptShard, MissingShard, StorageError.
    """
    varied, options = varied or Varied(), options or PlanOptions()
    planner = Planner(data, varied, options, progress)
    runs = []
    for done, (max_length, packing, *machine) in enumerate(varied.runs):
        runs.append(planner.run(max_length, packing, *machine))
        if progress is not None:
            progress(done + 1, len(varied.runs))
    members, rows = planner.members, planner.rows
    notes = notes_on(runs, options, n_read=rows.n_read, n_shards=planner.n_shards)
    if RowRules.of(members.datasets[0].manifest.recipe).task == PREFERENCE:
        notes.append("A row is a pair of answers, end to end: padding and memory are of such rows.")
    return Plan(
        root=members.root,
        n_shards=planner.n_shards,
        n_shards_read=rows.n_read,
        is_local=planner.is_local,
        runs=runs,
        advice=advice_on(runs, options, is_local=planner.is_local),
        notes=notes,
    )


def readers(data: Data, topology: Topology) -> list[Ints]:
    """The shards that each rank reads, ascending.

    Of a run in which each rank has lanes of its own; raises UsageError for any other.
    """
    order = Run(topology, data).plain_order
    if not isinstance(order, EpochOrder) or order.n_lanes != topology.world_size:
        raise UsageError(
            "every rank reads of all shards in this order",
            fix="Leave out --readers: it is for one dataset that is shuffled.",
        )
    return [np.sort(order.shards_of_lane(rank)) for rank in range(topology.world_size)]


def can_plan(dataset: Dataset) -> bool:
    """Whether a dataset's batches are rows that are padded together: pairs of answers are not."""
    return RowRules.of(dataset.manifest.recipe).task != PREFERENCE


@dataclass(frozen=True)
class Planner:
    """Reads the indexes once, and simulates runs over them."""

    data: Data
    varied: Varied
    options: PlanOptions
    progress: Progress | None = None

    @cached_property
    def members(self) -> Members:
        """The datasets."""
        return Members(self.data)

    @cached_property
    def is_local(self) -> bool:
        """Whether all datasets are on this machine."""
        return all(one.is_local for one in self.members.datasets)

    @cached_property
    def n_shards(self) -> int:
        """Shards of all members."""
        return sum(len(one.manifest.shards) for one in self.members.datasets)

    @cached_property
    def rows(self) -> Rows:
        """What the indexes say; raises UsageError for data that cannot be planned so."""
        if not all(can_plan(one) for one in self.members.datasets):
            raise UsageError(
                "the two answers of a pair are padded each for itself, which plan does not count",
                where=self.members.root,
                found="a dataset of --task preference",
                fix="For its rows and lengths: shardkit inspect DATASET.",
            )
        is_anew = any(max_length or packing for max_length, packing, *_ in self.varied.runs)
        if is_anew and isinstance(self.data, Mixture):
            raise UsageError(
                "--max-length and --packing are for one dataset, not for a mixture",
                fix="Plan each dataset by itself.",
            )
        task = RowRules.of(self.members.datasets[0].manifest.recipe).task
        if is_anew and task != SFT:
            raise UsageError(
                f"rows of the task {task} are not packed anew",
                fix="Leave out --max-length and --packing.",
            )
        return read_rows(
            self.members,
            self.options.shards,
            with_documents=is_anew,
            progress=self.progress,
        )

    def run(
        self, max_length: int | None, packing: str | None, ranks: int, batch: int, workers: int
    ) -> PlannedRun:
        """Plan one run."""
        laid = self._laid(max_length, packing)
        options, step = self.options, ranks * batch
        wanted = self._order(laid, ranks, batch, options.scope_of(self.is_local))
        n_rows = wanted.n_samples
        n_all = _ENDLESS_STEPS
        if n_rows is not None:
            sizes = {"batch_size": batch, "world_size": ranks}
            n_all = n_steps(n_rows, drop_last=options.drop_last, **sizes)
        chosen = chosen_steps(n_all, step, n_rows, options.max_rows)
        steps = look(wanted, laid.rows, chosen, ranks, batch)
        lengths = steps.column(laid.rows, "length")
        widths = widths_of(lengths, options.pad_to_multiple_of)
        n_places, n = int(widths.sum()) * batch, max(1, len(chosen))
        factors = self._factors(laid, chosen, ranks, batch)
        mine = options.name_of(self.is_local)
        if mine not in factors and len(chosen) >= FEWEST_STEPS:
            weights, every = options.weights, options.accumulation
            factors[mine] = straggler(steps, laid.rows, weights, every)
        recipe = self.members.datasets[0].manifest.recipe
        planes = 3 if laid.is_packed else 4
        return PlannedRun(
            world_size=ranks,
            batch_size=batch,
            workers=workers,
            max_length=max_length or recipe.get("max_length"),
            packing=packing or recipe.get("packing", "none"),
            n_rows=n_rows,
            n_steps=None if n_rows is None else n_all,
            n_left_over=0 if n_rows is None else abs(n_rows - n_all * step),
            n_simulated=len(chosen),
            tokens_a_step=int(lengths.sum()) / n,
            supervised_a_step=int(steps.column(laid.rows, "n_supervised").sum()) / n,
            pictures_a_step=int(steps.column(laid.rows, "n_images").sum()) / n,
            padding=1 - int(lengths.sum()) / n_places if n_places else 0.0,
            straggler=factors.get(mine),
            stragglers={k: v for k, v in factors.items() if k != "by length"},
            batch_bytes=8 * planes * batch * int(widths.max(initial=0)),
            pixel_bytes=self._pixel_bytes(steps, laid.rows),
            n_ahead=self._n_ahead(laid, workers),
            reads=self._reads(laid, wanted, steps, n_all, ranks, batch),
        )

    def _laid(self, max_length: int | None, packing: str | None) -> _Laid:
        manifest = self.members.datasets[0].manifest
        if max_length is None and packing is None:
            return _Laid(self.rows, None, manifest.is_packed)
        recipe = manifest.recipe
        n_read = len(self.rows.columns["length"])
        scale = manifest.n_samples / max(1, n_read) if self.rows.n_read < self.n_shards else 1.0
        rows, sizes = remade(
            self.rows.documents,
            max_length=max_length or recipe.get("max_length"),
            packing=packing or recipe["packing"],
            n_shards=max(1, self.n_shards),
            scale=scale,
        )
        before = max(1, int(self.rows.columns["length"].sum(dtype=np.int64)))
        share = int(rows.columns["length"].sum()) / before
        return _Laid(rows, sizes, (packing or recipe["packing"]) != "none", share)

    def _order(
        self, laid: _Laid, ranks: int, batch: int, scope: Scope | Literal["length"] | None
    ) -> Order:
        """The sequence of the epoch: plain, sorted by length, or laid out by cost."""
        options = self.options
        balance = None
        if scope is not None and scope != "length":
            balance = Balance(scope, ranks * batch, batch, options.weights)
        topology = Topology(
            world_size=ranks,
            batch_size=batch,
            seed=options.seed,
            epoch=options.epoch,
            shuffle=options.shuffle,
            drop_last=options.drop_last,
            group_by_length=scope == "length",
            balance=balance,
        )
        run = Run(topology, self.data)
        plain = run.plain_order
        if laid.sizes is not None and isinstance(plain, EpochOrder):
            plain = replace(plain, sizes=laid.sizes)
        return run.grouped(plain, laid.rows.lengths, laid.rows.costs)

    def _factors(self, laid: _Laid, chosen: Ints, ranks: int, batch: int) -> dict[str, float]:
        """Straggler factors: in a random order, and balanced in each way that makes sense."""
        options = self.options
        if len(chosen) < max(FEWEST_STEPS, options.accumulation):
            return {}
        if ranks == 1:
            return {"random": 1.0}
        scopes: list[Scope | None] = [None]
        if options.with_balance:
            scopes += ["group"] if isinstance(self.data, Mixture) else ["lanes", "group"]
            scopes += ["step"] if batch > 1 else []
        found: dict[str, float] = {}
        for scope in scopes:
            order = self._order(laid, ranks, batch, scope)
            steps = look(order, laid.rows, chosen, ranks, batch)
            weights, every = options.weights, options.accumulation
            found[scope or "random"] = straggler(steps, laid.rows, weights, every)
        return found

    def _pixel_bytes(self, steps: Steps, rows: Rows) -> int | None:
        most = int(steps.column(rows, "n_images").sum(axis=2).max(initial=0))
        if not most:
            return 0
        images = self.members.datasets[0].manifest.recipe.get("images") or {}
        side = images.get("image_size")
        return most * 3 * side * side * 4 if isinstance(side, int) else None

    def _n_ahead(self, laid: _Laid, workers: int) -> int:
        datasets = self.members.datasets
        is_large = laid.is_packed or any(one.manifest.image_recipe is not None for one in datasets)
        ahead = batches_ahead(is_large=is_large)
        return ahead + workers * max(2, -(-ahead // workers)) if workers else ahead

    def _reads(
        self, laid: _Laid, order: Order, steps: Steps, n_all: int, ranks: int, batch: int
    ) -> Reads:
        options, entries = self.options, self._shard_bytes
        n_first, took = first_batch(order, batch)
        took += n_first * self.rows.open_s
        on_node = min(ranks, options.ranks_per_node)
        n_bytes = on_node * batch * n_all * laid.share * float(entries.sum())
        n_bytes /= max(1, order.n_samples or ranks * batch * n_all)
        shards = None
        if laid.sizes is None and len(steps.at) == n_all and order.n_samples is not None:
            busiest = max(
                (
                    np.unique(part[part >= 0])
                    for first in range(0, ranks, on_node)
                    for part in [steps.shards[:, first : first + on_node]]
                ),
                key=lambda numbers: int(entries[numbers].sum()),
            )
            shards = len(busiest)
            n_bytes = float(entries[busiest].sum()) if not self.is_local else n_bytes
        if not self.is_local:
            took += n_first * float(entries.mean()) / options.bandwidth
        return Reads(round(n_bytes), shards, took, n_first)

    @cached_property
    def _shard_bytes(self) -> Ints:
        """(n_shards,) bytes of each shard, of all members."""
        entries = [entry for one in self.members.datasets for entry in one.manifest.shards]
        return np.array([entry.n_bytes for entry in entries], np.int64)
