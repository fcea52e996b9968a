"""The report of a dataset: one static HTML page with its videos beside their layouts and counts."""

from cluster.report.page import build_report

__all__ = ["build_report"]
