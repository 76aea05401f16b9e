"""RankRay from Python: start a search, go on with one, and load what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from orchestrator.comparison.directory import ComparisonDirectory
from orchestrator.comparison.preparing import prepare_all
from orchestrator.comparison.running import prepare_waiting, run_comparison
from orchestrator.comparison.settings import complete, planned_runs
from orchestrator.config.loading import check_config, read_config, read_mapping
from orchestrator.config.schema import ClusterSettings, Config
from orchestrator.hardware.device_list import Listed, list_devices
from orchestrator.hardware.devices import TimingSettings, devices_of
from orchestrator.hardware.measure_run import Measured, run_measure
from orchestrator.hardware.measuring import Unwatched, Watcher
from orchestrator.preparation import prepare
from orchestrator.progress import Observer, Silent
from orchestrator.report import build_report
from orchestrator.run_directory import RunDirectory
from orchestrator.search_run import run_search
from orchestrator.sweeps import trained
from orchestrator.sweeps.running import begin, go_on, run_more
from search_spaces.assembly import replace_layers
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.rank_space import rank_vector_from
from search_spaces.schemes.registry import schemes
from search_spaces.survey import stage_of
from workers.import_path import build

__all__ = [
    "Comparison",
    "Run",
    "Sweep",
    "compare",
    "devices",
    "load_compressed",
    "load_run",
    "load_trained",
    "measure",
    "new_run_location",
    "resume",
    "resume_comparison",
    "resume_sweep",
    "search",
    "sweep",
]

Location = str | PathLike[str]


@dataclass(frozen=True)
class Run:
    """A run directory that was read.

    Attributes:
        location: path or URI.
        config: as it was checked.
        result: `result.json`; None while the run is unfinished.
        space: `space.json`.
        evaluations: a row per scored candidate; `ranks` are tuples aligned to the layers of `space`.
    """

    location: str
    config: Config
    result: Mapping[str, Any] | None
    space: Mapping[str, Any]
    evaluations: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """A comparison that went through all its runs.

    Attributes:
        location: path or URI; each run lies in a folder below.
        table: `comparison.parquet`: a row per run, whatever became of it; see `orchestrator/comparison/outcomes.py`.
    """

    location: str
    table: pd.DataFrame


@dataclass(frozen=True)
class Sweep:
    """A sweep that went through all its trials.

    Attributes:
        location: path or URI.
        table: `trials.parquet`: a row per trial, whatever became of it; see `orchestrator/sweeps/outcomes.py`.
    """

    location: str
    table: pd.DataFrame


def search(
    config: Config | Mapping[str, Any] | Location,
    run_dir: Location | None = None,
    overrides: Sequence[str] = (),
    observer: Observer | None = None,
) -> Run:
    """Runs one search to its end.

    Args:
        config: a YAML file, a mapping of the same shape, or a checked config.
        run_dir: where the run is kept; by default a new folder below `runs/`.
        overrides: `search.seed=3`, as `--set` takes them; for a file only.
        observer: who watches; nobody by default.

    Raises:
        ConfigError: before anything starts, naming what is wrong.
        RunStoppedError: the run ended early; `resume` goes on.
    """
    checked, name = _checked(config, overrides)
    location = str(run_dir) if run_dir is not None else new_run_location(name)
    RunDirectory(location).storage.check_empty()  # cheap, and preparing may take minutes
    prepared = prepare(checked)
    run = RunDirectory.create(location, prepared)
    run_search(prepared, run, observer or Silent())
    return load_run(location)


def resume(run_dir: Location, observer: Observer | None = None) -> Run:
    """Goes on with a run that was stopped, with the same answer as if it had not been; a finished run is just read.

    Raises:
        ConfigError: it is no run, or its model or data are not what they were.
    """
    run = RunDirectory.open(str(run_dir))
    if run.result() is None:
        prepared = prepare(run.config())
        run.check_unchanged(prepared)
        run_search(prepared, run, observer or Silent())
    elif not run.storage.exists("report.html"):  # it was stopped between the result and the report
        run.storage.write("report.html", build_report([run.data()]).encode())
    return load_run(run.location)


def compare(
    config: Mapping[str, Any] | Location,
    run_dir: Location | None = None,
    overrides: Sequence[str] = (),
    observer: Observer | None = None,
) -> Comparison:
    """Runs all searches of a config's `compare` block under all its budgets on one cluster.

    Those that can share their evaluators run interleaved, and none of them has scored what another one has.

    A budget that a search cannot meet, and a run that fails, are rows of the table.

    Args:
        config: a YAML file, or a mapping of the same shape.
        run_dir: where the comparison is kept; by default a new folder below `runs/`.
        overrides: `compare.seeds=[0, 1]`, as `--set` takes them; for a file only.
        observer: who watches; nobody by default.

    Raises:
        ConfigError: before anything starts, naming what is wrong.
        RunInterruptedError: Ctrl-C; `resume_comparison` goes on.
    """
    raw, source, name = _raw(config, overrides, "compare")
    location = str(run_dir) if run_dir is not None else new_run_location(name)
    completed = complete(raw, source)
    planned = planned_runs(completed)
    ComparisonDirectory(location).storage.check_empty()
    prepared = prepare_all(planned)
    directory = ComparisonDirectory.create(location, completed)
    return Comparison(location, run_comparison(directory, planned, prepared, observer or Silent()))


def resume_comparison(run_dir: Location, observer: Observer | None = None) -> Comparison:
    """Goes on with a comparison: finished runs are read, unfinished ones resumed, failed ones tried again.

    Raises:
        ConfigError: it is no comparison, or its model or data are not what they were.
    """
    directory = ComparisonDirectory.open(str(run_dir))
    planned = planned_runs(directory.raw())
    prepared = prepare_waiting(directory, planned)
    return Comparison(directory.location, run_comparison(directory, planned, prepared, observer or Silent()))


def sweep(
    config: Mapping[str, Any] | Location,
    run_dir: Location | None = None,
    overrides: Sequence[str] = (),
    observer: Observer | None = None,
    *,
    more: int | None = None,
) -> Sweep:
    """Trains all methods of a config's `sweep` block under all its budgets, or what Optuna proposes of them.

    A trial that diverges is a row of the table; the others go on.

    Args:
        config: a YAML file, or a mapping of the same shape.
        run_dir: where the sweep is kept; by default a new folder below `runs/`.
        overrides: `sweep.seeds=[0, 1]`, as `--set` takes them; for a file only.
        observer: who watches; nobody by default.
        more: adds so many trials to the sweep by Optuna in `run_dir`, instead of starting one.

    Raises:
        ConfigError: before anything starts, naming what is wrong.
        RunInterruptedError: Ctrl-C; `resume_sweep` goes on.
    """
    raw, source, name = _raw(config, overrides, "sweep")
    watching = observer or Silent()
    if more is not None:
        if run_dir is None:
            raise ConfigError("--more", "adds trials to a sweep; name it with --run-dir")
        return Sweep(str(run_dir), run_more(raw, source, str(run_dir), more, watching))
    location = str(run_dir) if run_dir is not None else new_run_location(name)
    return Sweep(location, begin(raw, source, location, watching))


def resume_sweep(run_dir: Location, observer: Observer | None = None) -> Sweep:
    """Goes on with a sweep: trials that have ended are read, unfinished ones go on from their checkpoints.

    Raises:
        ConfigError: it is no sweep, or its model or data are not what they were.
    """
    return Sweep(str(run_dir), go_on(str(run_dir), observer or Silent()))


def devices(config: Config | Mapping[str, Any] | Location | None = None, overrides: Sequence[str] = ()) -> list[Listed]:
    """What a config's devices are and whether they are fit to be timed now.

    Args:
        config: as `search` takes it; None is this machine's processor.
        overrides: as `--set` takes them; for a file only.

    Raises:
        ConfigError: the config is wrong, or the cluster cannot be joined.
    """
    if config is None:
        return list_devices(devices_of({}), ClusterSettings(), TimingSettings())
    checked, _ = _checked(config, overrides)
    return list_devices(devices_of(checked.devices), checked.cluster, checked.timing)


def measure(
    config: Config | Mapping[str, Any] | Location,
    run_dir: Location | None = None,
    overrides: Sequence[str] = (),
    watcher: Watcher | None = None,
    *,
    check: bool = False,
) -> Measured:
    """Fills the latency table with what it lacks of a config's layers, on all its devices at once.

    Args:
        config: as `search` takes it.
        run_dir: where everything that was measured is kept, also what is of no use; by default a new folder below
            `runs/`.
        overrides: `timing.ranks=8`, as `--set` takes them; for a file only.
        watcher: sees how it goes; nobody by default.
        check: whether to measure a few known entries again.

    Raises:
        ConfigError: before anything is measured, naming what is wrong.
        RunInterruptedError: Ctrl-C; what was measured is in the table.
    """
    checked, name = _checked(config, overrides)
    location = str(run_dir) if run_dir is not None else new_run_location(f"{name}-measure")
    return run_measure(checked, location, watcher or Unwatched(), check=check)


def load_run(run_dir: Location) -> Run:
    """Reads a run, finished or not.

    Raises:
        ConfigError: it is no run.
    """
    run = RunDirectory.open(str(run_dir))
    data = run.data()
    return Run(run.location, run.config(), data.result, data.space, data.evaluations)


def load_compressed(run_dir: Location) -> nn.Module:
    """The compressed network of a finished run: ordinary `Conv2d`, `Linear` and `Sequential` in the user's model.

    Raises:
        ConfigError: it is no run, or not finished.
    """
    run = RunDirectory.open(str(run_dir))
    result = run.result()
    if result is None:
        raise ConfigError("run", f"{run.location} is not finished; `rankray resume {run.location}` goes on with it")
    settings = run.config().model
    model: nn.Module = build(settings.build, settings.arguments, "model.build", expected=nn.Module)
    layers = [_layer(model, described) for described in run.space()["layers"]]
    chosen = [schemes().get(result["schemes"][layer.name], "schemes") for layer in layers]
    ranks = rank_vector_from(result["ranks"][layer.name] for layer in layers)
    corrected = [layer.name for layer in layers] if result.get("bias") == "corrected" else []
    network = replace_layers(model, layers, chosen, ranks, corrected)
    try:
        network.load_state_dict(safetensors.torch.load(run.storage.read("model.safetensors")))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{run.location}/model.safetensors", f"cannot be loaded: {reason}") from None
    return network.eval()


def load_trained(run_dir: Location, trial: str) -> nn.Module:
    """The network that a trial of a sweep has trained: ordinary torch layers in the user's model.

    Args:
        run_dir: of the sweep.
        trial: its name, as in `trials.parquet`.

    Raises:
        ConfigError: no such sweep or trial, or one that has not finished.
    """
    return trained.load_trained(str(run_dir), trial).network


def new_run_location(name: str) -> str:
    """A folder below `runs/` that does not exist yet."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    taken = [path.name for path in Path("runs").glob("*")] if Path("runs").is_dir() else []
    free = next(n for n in range(len(taken) + 1) if _numbered(name, stamp, n) not in taken)
    return str(Path("runs") / _numbered(name, stamp, free))


def _raw(config: Mapping[str, Any] | Location, overrides: Sequence[str], name: str) -> tuple[dict[str, Any], str, str]:
    """A config unchecked, what to call it in messages, and what to call its run: `name`, or as its file."""
    if isinstance(config, Mapping):
        return dict(config), "config", name
    return read_mapping(Path(config), overrides), str(config), Path(config).stem


def _checked(config: Config | Mapping[str, Any] | Location, overrides: Sequence[str]) -> tuple[Config, str]:
    """A checked config, and what to call its run."""
    if isinstance(config, Config):
        return config, "run"
    if isinstance(config, Mapping):
        return check_config(config, "config"), "run"
    return read_config(Path(config), overrides), Path(config).stem


def _numbered(name: str, stamp: str, number: int) -> str:
    return f"{name}-{stamp}" + (f"-{number}" if number else "")


def _layer(model: nn.Module, described: Mapping[str, Any]) -> Layer:
    module = model.get_submodule(described["name"])
    stage = stage_of(module)
    if stage is None:
        raise ConfigError("model.build", f"{described['name']} is a {type(module).__name__} now; the model has changed")
    return Layer(described["name"], stage, module.bias is not None, (), tuple(described["aliases"]))
