"""What a run over a dataset will be like, from the indexes alone: nothing is trained."""

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
