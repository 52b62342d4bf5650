"""Comparisons of many runs: statistics over repeats, charts and the report of a job."""

from tljax.ablation.report import write_report

__all__ = ["write_report"]
