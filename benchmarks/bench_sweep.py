"""A sweep that is killed and resumed, and what ASHA saves, on a network for digits that is trained on the spot.

killed     24 trials, two at a time. The driver and all its workers are killed (SIGKILL) twice, and the sweep is
           resumed. A trial that had finished must not be touched again; `rewritten` counts those that were.
asha       the same 24 proposals (random search over learning rate and momentum) trained to their end, and with ASHA:
           epochs of both, and the best accuracy on 512 held-out samples.

Each part is kept in the JSON file when another one is run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from _record import arguments, record, show
from _trials_methods import DIGITS, digits_config
from rich.console import Console

from orchestrator import api
from orchestrator.progress import show_progress

NAME = "sweep"

_COMMAND = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def killed(folder: Path, quick: bool) -> dict[str, Any]:
    """Kills and resumes.

    Returns:
        `trials`, `finished` by the time of each kill, `rewritten`, and `statuses` at the end.
    """
    rates = [0.003, 0.01, 0.03] if quick else [0.003, 0.005, 0.01, 0.02, 0.03, 0.05]
    methods = {"uniform": {**_fine_tuning(3), "learning_rate": {"choice": rates}}}
    raw = _config(folder, methods=methods, budgets=[0.5] if quick else [0.5, 0.7], seeds=[0, 1], concurrency=2)
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    place = folder / "killed"
    arguments = ["sweep", str(folder / "config.yaml"), "--run-dir", str(place)]
    written: dict[str, int] = {}
    finished, rewritten, trials = [], 0, len(raw["sweep"]["budgets"]) * 2 * len(rates)
    for share in (1 / 4, 3 / 5):
        driver = subprocess.Popen([*_COMMAND, *arguments], start_new_session=True)
        while len(_results(place)) < share * trials:
            if driver.poll() is not None:
                raise RuntimeError("the sweep was over before it could be killed")
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        now = _results(place)
        rewritten += _changed(written, now)
        finished.append(len(now))
        written, arguments = now, ["resume", str(place)]
    subprocess.run([*_COMMAND, *arguments], check=True)
    rewritten += _changed(written, _results(place))
    statuses = pd.read_parquet(place / "trials.parquet")["status"].value_counts().to_dict()
    return {"trials": trials, "finished": finished, "rewritten": rewritten, "statuses": statuses}


def show_killed(found: Mapping[str, Any]) -> None:
    """Prints it."""
    rows = [
        ["finished when killed", " and ".join(map(str, found["finished"]))],
        ["finished trials that were trained again", str(found["rewritten"])],
        *([f"{status} in the end", str(count)] for status, count in found["statuses"].items()),
    ]
    show(f"A sweep of {found['trials']} trials, killed twice and resumed", ["", ""], rows)


def asha(folder: Path, quick: bool) -> dict[str, Any]:
    """Trains the same proposals with and without ASHA.

    Returns:
        By `all` and `asha`: `epochs`, `best` accuracy, `stopped` trials; and `saved`, the share of epochs.
    """
    epochs, trials, grace = (3, 6, 1) if quick else (18, 24, 3)
    ranges = {"learning_rate": {"loguniform": [1e-4, 0.3]}, "momentum": {"uniform": [0.5, 0.95]}}
    common = {
        "methods": {"uniform": {**_fine_tuning(epochs), "batch_size": 32, **ranges}},
        "budgets": [0.7],
        "optuna": {"trials": trials, "sampler": "random"},
        "concurrency": 2,
    }
    found: dict[str, Any] = {}
    for name, more in (("all", {}), ("asha", {"asha": {"grace": grace, "factor": 3}})):
        with show_progress(Console(stderr=True)) as observer:
            table = api.sweep(_config(folder, **common, **more), folder / name, observer=observer).table
        best = float(table.loc[table["status"] == "finished", "accuracy"].max())
        stopped = int((table["status"] == "stopped").sum())
        found[name] = {"epochs": int(table["epochs"].sum()), "best": best, "stopped": stopped, "trials": len(table)}
    return {**found, "saved": 1 - found["asha"]["epochs"] / found["all"]["epochs"]}


def show_asha(found: Mapping[str, Any]) -> None:
    """Prints it."""
    rows = [
        [label, str(one["trials"]), str(one["stopped"]), str(one["epochs"]), f"{100 * one['best']:.2f}"]
        for label, one in (("all to their end", found["all"]), ("ASHA", found["asha"]))
    ]
    show(
        f"ASHA saves {found['saved']:.1%} of the epochs", ["", "trials", "stopped", "epochs", "best accuracy, %"], rows
    )


PARTS = {"killed": (killed, show_killed), "asha": (asha, show_asha)}


def read_arguments() -> argparse.Namespace:
    """The command line; as every benchmark's, and what is special here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="these alone")
    return arguments(NAME, parser)


def main(given: argparse.Namespace) -> None:
    """Measures, prints and records, part by part."""
    started = time.monotonic()
    results = _kept(given)
    for part in given.part:
        measure, shown = PARTS[part]
        with tempfile.TemporaryDirectory() as folder:
            results[part] = measure(Path(folder), given.quick)
        shown(results[part])
        record(NAME, given, {"parts": list(PARTS)}, results, started)


def _kept(given: argparse.Namespace) -> dict[str, Any]:
    if given.json is None or not given.json.exists():
        return {}
    content = json.loads(given.json.read_text())
    results: dict[str, Any] = content["results"] if content["quick"] == given.quick else {}
    return results


def _config(folder: Path, **sweep: Any) -> dict[str, Any]:
    return {**digits_config(folder), "sweep": {"ranks_from": "uniform", **sweep}}


def _fine_tuning(epochs: int) -> dict[str, Any]:
    return {"method": "fine_tuning", "epochs": epochs, **DIGITS}


def _results(place: Path) -> dict[str, int]:
    """When the results of finished trials were written, by trial, in nanoseconds."""
    return {one.parent.name: one.stat().st_mtime_ns for one in place.glob("trials/*/result.json")}


def _changed(before: Mapping[str, int], now: Mapping[str, int]) -> int:
    return sum(now.get(name) != written for name, written in before.items())


if __name__ == "__main__":
    main(read_arguments())
