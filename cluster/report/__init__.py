"""The report of a dataset: a static page of all its clips, their layouts and counts, which needs no server."""

from cluster.report.page import build_report

__all__ = ["build_report"]
