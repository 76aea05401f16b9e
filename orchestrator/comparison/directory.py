"""The directory of a comparison: its config, the directories of its runs, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from orchestrator.config.loading import parse_mapping
from orchestrator.preparation import Prepared
from orchestrator.run_directory import RunDirectory
from orchestrator.storage import Storage
from search_spaces.errors import ConfigError

__all__ = ["ComparisonDirectory", "is_comparison"]

_CONFIG = "compare.yaml"


class ComparisonDirectory:
    """Reads and writes `compare.yaml`, `comparison.parquet` and `comparison.html`; each run lies in a folder below.

    Args:
        location: a local path or a `pyarrow.fs` URI.
        key: what to call it in messages.
    """

    def __init__(self, location: str, key: str = "--run-dir") -> None:
        self.storage = Storage(location, key)
        self.location = location

    @classmethod
    def create(cls, location: str, completed: Mapping[str, Any]) -> ComparisonDirectory:
        """A new one with its config.

        Raises:
            ConfigError: it exists, or cannot be written to.
        """
        directory = cls(location)
        directory.storage.create()
        plain = json.loads(json.dumps(completed, default=str))  # from Python a config may hold paths and tuples
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        directory.storage.write(_CONFIG, text.encode())
        return directory

    @classmethod
    def open(cls, location: str, key: str = "run") -> ComparisonDirectory:
        """An existing one.

        Raises:
            ConfigError: there is none at this place.
        """
        directory = cls(location, key)
        if not directory.storage.exists(_CONFIG):
            raise ConfigError(key, f"{location} is no comparison: it has no {_CONFIG}; `rankray compare` writes one")
        return directory

    def completed(self) -> dict[str, Any]:
        """The config that it was started with, everything written out."""
        return parse_mapping(self.storage.read(_CONFIG), f"{self.location}/{_CONFIG}")

    def run_location(self, name: str) -> str:
        """Path or URI of a run; a URI keeps its options."""
        place, mark, options = self.location.partition("?") if "://" in self.location else (self.location, "", "")
        return f"{place.rstrip('/')}/{name}{mark}{options}"

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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from working on the same local comparison.

        Raises:
            RunStoppedError: one does already.
        """
        with RunDirectory(self.location).locked():
            yield


def is_comparison(location: str) -> bool:
    """Whether a comparison lies at this place.

    Raises:
        ConfigError: the place cannot be reached.
    """
    return Storage(location, "run").exists(_CONFIG)
