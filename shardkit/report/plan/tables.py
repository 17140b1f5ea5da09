"""A plan as tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardkit.report.plan.what import PlannedRun
from shardkit.units import readable

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of text; the first columns say which run it is."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def tables_of(runs: Sequence[PlannedRun]) -> list[Table]:
    """Three tables: what a step is, how evenly it is shared, what a rank and its node need."""
    names, cells = _names(runs)
    pictures = ["pictures"] if any(run.pictures_a_step for run in runs) else []
    steps = ["steps", "left over", "tokens", "supervised", *pictures]
    needs = ["a batch", "memory", "node reads", "its shards", "opens", "first batch"]
    return [
        _table(
            "Steps of an epoch, and what one holds on all ranks together",
            names + steps,
            cells,
            [_steps_cells(run, bool(pictures)) for run in runs],
        ),
        _table(
            "Padding, and the dearest rank's cost over the mean: as asked, and balanced",
            [*names, "padding", "slowest", "balanced"],
            cells,
            [_share_cells(run) for run in runs],
        ),
        _table("What a rank and its node need", names + needs, cells, [*map(_needs_cells, runs)]),
    ]


def _table(title: str, headings: list[str], names: list[list[str]], rows: list[list[str]]) -> Table:
    return Table(title, headings, [a + b for a, b in zip(names, rows, strict=True)])


def _names(runs: Sequence[PlannedRun]) -> tuple[list[str], list[list[str]]]:
    """What differs between runs, ranks and batch always."""
    every = {
        "ranks": [f"{run.world_size:,}" for run in runs],
        "batch": [f"{run.batch_size:,}" for run in runs],
        "workers": [f"{run.workers:,}" for run in runs],
        "max length": [f"{run.max_length:,}" if run.max_length else "no limit" for run in runs],
        "packing": [run.packing for run in runs],
    }
    shown = {
        name: cells
        for name, cells in every.items()
        if name in ("ranks", "batch") or len(set(cells)) > 1
    }
    return [*shown], [list(row) for row in zip(*shown.values(), strict=True)]


def _steps_cells(run: PlannedRun, has_pictures: bool) -> list[str]:
    share = run.supervised_a_step / run.tokens_a_step if run.tokens_a_step else 0.0
    cells = [
        "no end" if run.n_steps is None else f"{run.n_steps:,}",
        f"{run.n_left_over:,}",
        f"{run.tokens_a_step:,.0f}",
        f"{100 * share:.1f} %",
    ]
    return [*cells, f"{run.pictures_a_step:,.1f}"] if has_pictures else cells


def _share_cells(run: PlannedRun) -> list[str]:
    best = run.best
    return [
        f"{100 * run.padding:.1f} %",
        NOTHING if run.straggler is None else f"{run.straggler:.2f}",
        NOTHING if best is None else f"{best[1]:.2f} {best[0]}",
    ]


def _needs_cells(run: PlannedRun) -> list[str]:
    one = run.batch_bytes + (run.pixel_bytes or 0)
    cells = [readable(one), readable(run.memory)]
    if run.reads is None:
        return [*cells, NOTHING, NOTHING, NOTHING, NOTHING]
    reads = run.reads
    shards = NOTHING if reads.n_shards is None else f"{reads.n_shards:,}"
    opens = f"{reads.first_batch_shards:,}"
    return [*cells, readable(reads.n_bytes), shards, opens, _duration(reads.first_batch_s)]


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"
