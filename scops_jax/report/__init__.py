"""The report of a run: one page that needs nothing but itself."""

from scops_jax.report.page import write_report

__all__ = ["write_report"]
