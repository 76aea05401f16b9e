"""A sweep from start or resumption to its table and page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
from ray import tune

from orchestrator.progress import Observer
from orchestrator.ray_cluster import Cluster, connect
from orchestrator.report.quantities import plural
from orchestrator.storage import Storage, below
from orchestrator.sweeps.directory import SweepDirectory
from orchestrator.sweeps.finding_ranks import find_ranks
from orchestrator.sweeps.following import Following, ended_rows
from orchestrator.sweeps.outcomes import LOST, parquet_bytes
from orchestrator.sweeps.page import sweep_page
from orchestrator.sweeps.preparing import PreparedSweep, prepare_sweep
from orchestrator.sweeps.proposals import Grid, OptunaStudy, Proposals, check_database
from orchestrator.sweeps.settings import SweepPlan, SweepSettings, plan_sweep
from orchestrator.sweeps.timing import networks_timed, with_timed_budgets
from orchestrator.sweeps.trial_actor import TrialActor, TrialTerms
from orchestrator.sweeps.tuning import run_trials
from orchestrator.sweeps.work import Row
from orchestrator.termination import termination_interrupts
from search_spaces.errors import ConfigError, RunInterruptedError

__all__ = ["begin", "go_on", "run_more"]

_PREPARING = "reading the data; trying every method under every budget, before anything is trained"


def begin(raw: Mapping[str, Any], source: str, location: str, observer: Observer) -> pd.DataFrame:
    """Runs a new sweep.

    Args:
        raw: the config, unchecked.
        source: what to call it in messages.
        location: path or URI of a new directory.

    Returns:
        The table; see `outcomes.SCHEMA`.

    Raises:
        ConfigError: before anything starts, naming what is wrong.
        RunInterruptedError: Ctrl-C, or SIGTERM; `go_on` goes on.
    """
    plan = plan_sweep(raw, source)
    probe = SweepDirectory(location)
    probe.storage.check_empty()  # cheap, and preparing may take minutes
    if plan.settings.optuna is not None:
        check_database(probe.local)
    if plan.settings.storage is not None:
        Storage(below(plan.settings.storage, probe.storage.name), "sweep.storage").check_empty()
    observer.say(_PREPARING)
    prepared = prepare_sweep(plan)
    asked = {"trials": _wanted(plan, prepared), "fingerprints": dict(prepared.material.fingerprints)}
    directory = SweepDirectory.create(location, raw, plan.settings.storage, asked)
    return _run(directory, prepared, observer)


def go_on(location: str, observer: Observer) -> pd.DataFrame:
    """Goes on with a sweep; one that is finished is just read, and no trial that has ended is trained again.

    Raises:
        ConfigError: it is no sweep, or its model or data are not what they were.
        RunInterruptedError: Ctrl-C, or SIGTERM.
    """
    directory = SweepDirectory.open(location)
    finished = _finished(directory)
    return _resume(directory, directory.raw(), observer) if finished is None else finished


def run_more(raw: Mapping[str, Any], source: str, location: str, more: int, observer: Observer) -> pd.DataFrame:
    """Adds trials to a sweep by Optuna, finished or not.

    Args:
        raw: its config; other methods, budgets and objectives would make it another sweep.
        more: how many trials.

    Raises:
        ConfigError: the sweep is of another config, or is a grid.
    """
    directory = SweepDirectory.open(location, "--run-dir")
    plan = plan_sweep(raw, source)
    if plan.settings.optuna is None:
        raise ConfigError(
            "--more", "a grid has all its trials; add seeds or budgets to a new sweep, or use sweep.optuna"
        )
    if more < 1:
        raise ConfigError("--more", f"takes a number of trials from 1 on, not {more}")
    different = [name for name, one in _fixed(plan).items() if _fixed(plan_sweep(directory.raw(), source))[name] != one]
    if different:
        raise ConfigError("--more", f"{location} is a sweep of another config: {', '.join(different)} differ")
    asked = directory.asked()
    with directory.locked():
        directory.write_asked({**asked, "trials": int(asked["trials"]) + more})
        directory.write_raw(raw)
    return _resume(directory, raw, observer)


def _finished(directory: SweepDirectory) -> pd.DataFrame | None:
    """The table of a sweep in which nothing is left to do."""
    files = ("sweep.html", "trials.parquet")
    if not all(directory.storage.exists(name) for name in files):
        return None
    table = pd.read_parquet(io.BytesIO(directory.storage.read("trials.parquet")))
    lost = table["reason"].str.startswith(LOST)
    done = len(table) >= int(directory.asked()["trials"]) and not (lost | (table["status"] == "unfinished")).any()
    return table if done else None


def _resume(directory: SweepDirectory, raw: Mapping[str, Any], observer: Observer) -> pd.DataFrame:
    plan = plan_sweep(raw, f"{directory.location}/sweep.yaml")
    observer.say(_PREPARING)
    prepared = prepare_sweep(plan)
    recorded = directory.asked()["fingerprints"]
    for what, key in (("model", "model.checkpoint"), ("data", "data.train")):
        if recorded[what] != prepared.material.fingerprints[what]:
            raise ConfigError(key, f"the {what} is not what this sweep began with; start a new one")
    return _run(directory, prepared, observer)


def _run(directory: SweepDirectory, prepared: PreparedSweep, observer: Observer) -> pd.DataFrame:
    with directory.locked():
        rows, untimed = ended_rows(directory, directory.trials, prepared)
        wanted = int(directory.asked()["trials"])
        waits = len(rows) < wanted or untimed or any(row["status"] == "unfinished" for row in rows.values())
        ended = {name: row for name, row in rows.items() if row["status"] != "unfinished" and name not in untimed}
        following = Following(
            directory, prepared, _proposals(directory, prepared, wanted, ended), rows, wanted, observer
        )
        try:
            interrupted = bool(waits) and _train(directory, prepared, following, observer)
        except (KeyboardInterrupt, RunInterruptedError):
            interrupted = True
        finally:
            following.close()
            table = following.write()
        if interrupted:
            raise RunInterruptedError(
                f"interrupted after {following.epochs:,} epochs; go on with `rankray resume {directory.location}`"
            )
        directory.storage.write("trials.parquet", parquet_bytes(table))
        directory.storage.write("sweep.html", sweep_page(table).encode())
    return table


def _train(directory: SweepDirectory, prepared: PreparedSweep, following: Following, observer: Observer) -> bool:
    plan = prepared.plan
    settings = plan.settings
    with connect(plan.config.cluster) as cluster:
        room = _room(cluster, settings, directory)
        prepared = with_timed_budgets(prepared, cluster, directory, observer)
        ranks = find_ranks(prepared.sources, directory, observer)
        terms = TrialTerms(
            str(directory.asked()["trials_at"]),
            ranks,
            settings.resources.cpus,
            "cuda" if settings.resources.gpus else "cpu",
            settings.checkpoint_every,
            f"rankray resume {directory.location}",
        )
        observer.say(f"training up to {plural(room, 'trial')} at once; nodes: {len(cluster.nodes())}")
        actor = tune.with_parameters(TrialActor, stored=prepared.material.store(), terms=terms)
        with networks_timed(prepared, cluster, directory, observer) as times:
            with termination_interrupts():
                following.time_by(times)
            return run_trials(following, actor, settings)


def _proposals(directory: SweepDirectory, prepared: PreparedSweep, wanted: int, rows: Mapping[str, Row]) -> Proposals:
    begun = directory.proposed()
    if prepared.plan.settings.optuna is None:
        return Grid(prepared.grid, [trial.name for trial in begun])
    database = check_database(directory.local) / "study.db"
    return OptunaStudy(prepared.plan, database, wanted, begun, rows)


def _wanted(plan: SweepPlan, prepared: PreparedSweep) -> int:
    return len(prepared.grid) if plan.settings.optuna is None else plan.settings.optuna.trials


def _room(cluster: Cluster, settings: SweepSettings, directory: SweepDirectory) -> int:
    """How many trials the cluster holds at once. Where it holds none, Tune would wait forever and say nothing.

    Raises:
        ConfigError: none.
    """
    wanted = {"CPU": float(settings.resources.cpus), "GPU": settings.resources.gpus}
    nodes = cluster.nodes()
    rooms = [
        min(int(node.total.get(name, 0.0) / amount) for name, amount in wanted.items() if amount) for node in nodes
    ]
    if not any(rooms):
        held = "; ".join(f"{node.total.get('CPU', 0):g} CPUs, {node.total.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(
            "sweep.resources",
            f"no node holds {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs; there are {held}. Change it in "
            f"{directory.location}/sweep.yaml and resume",
        )
    return min(sum(rooms), settings.concurrency or sum(rooms))


def _fixed(plan: SweepPlan) -> dict[str, Any]:
    """What a sweep's trials depend on; how many run at once, and where, may change."""
    free = ("resources", "concurrency", "retries", "checkpoint_every")
    settings = plan.settings.model_dump(mode="json", exclude={*free})
    optuna = settings.pop("optuna") or {}
    optuna.pop("trials", None)
    rest = plan.config.model_dump(mode="json", exclude={"cluster"}, serialize_as_any=True)
    blocks = {**rest, **{f"sweep.{name}": value for name, value in settings.items()}}
    return {**blocks, **{f"sweep.optuna.{name}": value for name, value in optuna.items()}}
