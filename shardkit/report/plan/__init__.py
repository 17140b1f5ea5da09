"""What a run over a dataset will be like, from the indexes alone: nothing is trained.

`what` is asked; `make` reads `rows` once, has them `remade` at other lengths or packings, runs them
through `simulate` step by step, and `advice` says what follows. `tables` and `write` print it.
"""

from shardkit.report.plan.make import make_plan, readers
from shardkit.report.plan.tables import Table, tables_of
from shardkit.report.plan.what import Plan, PlannedRun, PlanOptions, Reads, Varied
from shardkit.report.plan.write import check_name, write_plan

__all__ = [
    "Plan",
    "PlanOptions",
    "PlannedRun",
    "Reads",
    "Table",
    "Varied",
    "check_name",
    "make_plan",
    "readers",
    "tables_of",
    "write_plan",
]
