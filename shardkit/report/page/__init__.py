"""A dataset as one HTML page: counts from its indexes, and some of its samples.

`build` calls, in this order: `survey` (counts), `facts` (what the manifest says), `choose` and
`cards` (samples, with `marks`), `charts` over `svg`, and `rendering`, which escapes everything.
"""

from shardkit.report.page.build import ReportOptions, make_report, write_report

__all__ = ["ReportOptions", "make_report", "write_report"]
