"""What every benchmark records: the machine, the versions, repeats taken in turns, a table, and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from orchestrator.provenance import provenance

__all__ = ["arguments", "by_turns", "machine", "ratio", "record", "show", "summary"]

RESULTS = Path(__file__).parent / "results"


def arguments(name: str, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line.

    Args:
        name: of the benchmark: its results go to `benchmarks/results/<name>.json`.
        parser: with what is special to the benchmark.

    Returns:
        `quick` (a run of seconds that shows that the script works, not what it measures) and `json`, the file to
        write; None for a quick run that was given none, so that it never replaces real results.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it works")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help=f"default: benchmarks/results/{name}.json; none with --quick"
    )
    given = parser.parse_args()
    if given.json is None and not given.quick:
        given.json = RESULTS / f"{name}.json"
    return given


def machine() -> dict[str, Any]:
    """The machine without its name: `cpu`, `cores`, `memory_gb`, `system`, and `load`, that of the last minute."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(psutil.getloadavg()[0], 2),
    }


def _cpu() -> str:
    """The processor's name; Linux alone tells it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def by_turns(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Takes each measure once per repeat, in turns: what slows the machine for a while slows all of them alike.

    Every second repeat goes through them backwards, so that none always follows the same other one.
    """
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for repeat in range(repeats):
        for name in list(measures) if repeat % 2 == 0 else reversed(list(measures)):
            taken[name].append(measures[name]())
    return taken


def summary(values: Sequence[float]) -> dict[str, float]:
    """`median`, `lowest` and `highest`."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratio(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """`ratio` of the medians, with `lowest` and `highest` among the ratios of single repeats."""
    singles = [one / other for one, other in zip(values, reference, strict=True)]
    return {
        "ratio": statistics.median(values) / statistics.median(reference),
        "lowest": min(singles),
        "highest": max(singles),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; all columns but the first hold numbers."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width of its own, and a table folded to 80 columns is hard to copy.
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def record(
    name: str, given: argparse.Namespace, settings: Mapping[str, Any], results: Mapping[str, Any], started: float
) -> None:
    """Writes what was measured, where the command line asks for it.

    The file has the keys `benchmark`, `quick`, `machine`, `versions`, `git_commit`, `seconds` (of the whole
    benchmark), `settings` and `results`.

    Args:
        given: from `arguments`.
        started: `time.monotonic()` at the start.
    """
    origin = provenance({"model": "", "data": ""})
    content = {
        "benchmark": name,
        "quick": given.quick,
        "machine": machine(),
        "versions": origin["versions"],
        "git_commit": origin["git_commit"],
        "seconds": round(time.monotonic() - started, 1),
        "settings": settings,
        "results": results,
    }
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
