"""All methods at equal budgets and equal epochs: a trial for every cell, each of which can be resumed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _record import show
from _trials_methods import method
from rich.console import Console

from orchestrator import api
from orchestrator.progress import show_progress
from orchestrator.run_directory import RunDirectory
from orchestrator.storage import Storage
from orchestrator.sweeps.material import Material
from orchestrator.sweeps.settings import plan_sweep
from orchestrator.sweeps.trials import Trial
from orchestrator.sweeps.work import TrialWork
from search_spaces.errors import TrialDivergedError
from search_spaces.rank_space import RankVector, rank_vector_from
from workers.training.sgd import evaluate

__all__ = ["fill_table", "show_table"]

_CONSOLE = Console(stderr=True)


def fill_table(
    config: Mapping[str, Any],
    material: Material,
    names: Sequence[str],
    budgets: Sequence[float],
    epochs: int,
    sgd: Mapping[str, Any],
    folder: Path,
    keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Trains what is missing, in this process, on one thread.

    Args:
        config: of the network and its data.
        material: read by that config.
        names: of methods.
        budgets: C(r) in MACs.
        epochs: of every method, selection included.
        sgd: settings of SGD that all of them share.
        folder: cells that are finished are kept there, and those that were stopped gone on with.
        keep: called with all that is known after every cell.

    Returns:
        `dense`, accuracies of the dense network; and by budget and method the trial's numbers, or why it has none.
    """
    torch.set_num_threads(1)
    assert material.test is not None
    dense = {"held_out": evaluate(material.network, material.held_out)[0]}
    found: dict[str, Any] = {"dense": {**dense, "test": evaluate(material.network, material.test)[0]}}
    layers = [layer.name for layer in material.found.layers]
    for budget in budgets:
        cells = found.setdefault(f"{budget:g}", {})
        for name in names:
            trial = _trial(config, name, budget, epochs, sgd)
            origin = trial.ranks_from
            ranks = None if origin is None else _ranks(config, origin, budget, layers, folder)
            cells[name] = _trained(trial, material, ranks, folder)
            keep(found)
    return found


def show_table(found: Mapping[str, Any]) -> None:
    """Prints a table for every budget: accuracies in per cent."""
    dense = {name: _percent(value) for name, value in found["dense"].items()}
    for budget, cells in found.items():
        if budget == "dense":
            continue
        rows = [[name, *_cells(cell)] for name, cell in cells.items()]
        heads = ["", "C", "held out, before", "held out", "test", "epochs", "CPU seconds"]
        title = f"{budget} of the MACs saved; accuracy in %, dense {dense['test']} ({dense['held_out']} held out)"
        show(title, heads, rows)


def _trial(config: Mapping[str, Any], name: str, budget: float, epochs: int, sgd: Mapping[str, Any]) -> Trial:
    block = {"methods": {name: method(name, epochs, sgd)}, "budgets": [{"macs": budget}]}
    plan = plan_sweep({**config, "sweep": block}, "config")
    return plan.methods[0].trial(0, {}, plan.budgets[0], 0)


def _ranks(config: Mapping[str, Any], origin: str, budget: float, names: Sequence[str], folder: Path) -> RankVector:
    """By the config's own search (`search`) or another one, by layers' names; run once."""
    own = dict(config["search"])
    search = {**own, "method": own["method"] if origin == "search" else origin, "budget": {"macs": budget}}
    location = folder / "ranks" / f"{search['method']}-{budget:g}"
    with show_progress(_CONSOLE) as observer:
        if (location / "config.yaml").exists():
            api.resume(location, observer)
        else:
            api.search({**config, "search": search}, location, observer=observer)
    result = RunDirectory.open(str(location)).result()
    assert result is not None
    return rank_vector_from(result["ranks"][name] for name in names)


def _trained(trial: Trial, material: Material, ranks: RankVector | None, folder: Path) -> dict[str, Any]:
    digest = hashlib.blake2b(json.dumps(trial.definition, sort_keys=True).encode(), digest_size=6).hexdigest()
    storage = Storage(str(folder / "cells" / digest))
    file = f"{trial.name}/result.json"
    if not storage.exists(file):
        try:
            _train(TrialWork(trial, material, ranks, storage), trial, storage)
        except TrialDivergedError as error:
            return {"failed": str(error)}
    result = json.loads(storage.read(file))
    scores = {name: result[name] for name in ("accuracy_before", "accuracy", "test_accuracy")}
    seconds = json.loads(storage.read(f"{trial.name}/cpu.json"))
    return {
        **scores,
        "compression": result["compression"]["macs"],
        "epochs": len(result["history"]),
        "cpu_seconds": sum(seconds.values()),
    }


def _train(work: TrialWork, trial: Trial, storage: Storage) -> None:
    """To the end; takes down the CPU seconds of every epoch, which other work on the machine hardly changes."""
    name, done = f"{trial.name}/cpu.json", False
    seconds = json.loads(storage.read(name)) if storage.exists(name) else {}
    while not done:
        started = time.process_time()
        row = work.epoch()
        seconds[str(row["epoch"])] = time.process_time() - started
        storage.write(name, json.dumps(seconds).encode())
        _CONSOLE.print(f"{trial.name}: epoch {row['epoch']} of {row['of']}, accuracy {row['accuracy']:.4f}")
        done = row["done"]


def _cells(cell: Mapping[str, Any]) -> list[str]:
    if "failed" in cell:
        return [cell["failed"]]
    scores = [_percent(cell[one]) for one in ("accuracy_before", "accuracy", "test_accuracy")]
    return [f"{cell['compression']:.4f}", *scores, str(cell["epochs"]), f"{cell['cpu_seconds']:.0f}"]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
