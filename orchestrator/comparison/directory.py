"""The directory of a comparison: its config, the directories of its runs, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config_directory import ConfigDirectory
from orchestrator.preparation import Prepared
from orchestrator.run_directory import RunDirectory
from orchestrator.storage import Storage, below

__all__ = ["ComparisonDirectory"]


class ComparisonDirectory(ConfigDirectory):
    """Reads and writes `compare.yaml`, `comparison.parquet` and `comparison.html`; each run lies in a folder below."""

    kind, command, config_name = "comparison", "compare", "compare.yaml"

    @classmethod
    def create(cls, location: str, completed: Mapping[str, Any]) -> ComparisonDirectory:
        """A new one with its config, everything written out.

        Raises:
            ConfigError: it exists, or cannot be written to.
        """
        directory = cls(location)
        directory.storage.create()
        directory.write_raw(completed)
        return directory

    def run_location(self, name: str) -> str:
        """Path or URI of a run."""
        return below(self.location, name)

    def run(self, name: str) -> RunDirectory | None:
        """A run that was started, finished or not; None where it was not."""
        location = self.run_location(name)
        # The config comes last: without it the run was cut short before it began.
        return RunDirectory.open(location) if Storage(location).exists("config.yaml") else None

    def start(self, name: str, prepared: Prepared) -> RunDirectory:
        """A run's directory, new or as a former process left it."""
        run = self.run(name)
        if run is None:
            run = RunDirectory(self.run_location(name))
            run.begin(prepared)
        return run
