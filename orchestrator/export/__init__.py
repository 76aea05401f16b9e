"""The compressed network for others: formats, and the check that every written file passes."""

from orchestrator.export.exporting import export_model
from orchestrator.export.from_run import export_run, export_trial

__all__ = ["export_model", "export_run", "export_trial"]
