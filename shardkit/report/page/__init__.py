"""A dataset as one HTML page: counts from its indexes, and some of its samples."""

from shardkit.report.page.build import ReportOptions, make_report, write_report

__all__ = ["ReportOptions", "make_report", "write_report"]
