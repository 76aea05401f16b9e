"""The scoring benchmark's JSON file, whose parts are measured one at a time, often by several processes in turn."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from _record import machine, record

from orchestrator.provenance import provenance

__all__ = ["Results"]


class Results:
    """Keeps every part as soon as something of it was measured, and leaves the others as they are.

    Args:
        name: of the benchmark.
        given: the command line: `json`, the file or None, and `quick`. A file of the other kind, quick or not, is
            replaced.
    """

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self._name, self._given = name, given
        self._settings: dict[str, Any] = {}
        self._results: dict[str, Any] = {}
        if given.json is not None and given.json.exists():
            content = json.loads(given.json.read_text(encoding="utf-8"))
            if content["quick"] == given.quick:
                self._settings, self._results = content["settings"], content["results"]

    def former(self, part: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """What was found of a part before under the same settings; empty where there is nothing."""
        same = self._settings.get(part) == _as_json(settings)
        found: Mapping[str, Any] = self._results.get(part, {}) if same else {}
        return found

    def keep(
        self, part: str, settings: Mapping[str, Any], found: Mapping[str, Any], started: float, *, finished: bool
    ) -> None:
        """Writes what was found of a part, with the machine and its load, the commit and the seconds it took.

        Args:
            started: `time.monotonic()` when this process began with the part.
            finished: whether nothing of it is left to do.
        """
        origin = {
            "finished": finished,
            "machine": machine(),
            "git_commit": provenance({"model": "", "data": ""})["git_commit"],
            "seconds": round(time.monotonic() - started, 1),
        }
        self._settings[part] = _as_json(settings)
        self._results[part] = {**found, **origin}
        record(self._name, self._given, self._settings, self._results, started)


def _as_json(value: Mapping[str, Any]) -> Any:
    """As it will be read back: tuples are lists."""
    return json.loads(json.dumps(value))
