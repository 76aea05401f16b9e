"""The report: one self-contained HTML page on a run, or on several side by side."""

from orchestrator.report.page import build_report
from orchestrator.report.run_data import RunData

__all__ = ["RunData", "build_report"]
