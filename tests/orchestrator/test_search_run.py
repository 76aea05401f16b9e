"""A search on a real network: the same answer however many evaluators, and the one that algorithm 1 gives."""

from __future__ import annotations

import copy
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import yaml
from torch import nn

from orchestrator import api
from orchestrator.config.loading import check_config
from orchestrator.preparation import Prepared, prepare
from orchestrator.progress import Silent
from orchestrator.ray_cluster import Cluster
from orchestrator.searches.registry import search_methods
from orchestrator.storage import Storage
from search_spaces.assembly import assemble
from search_spaces.candidates import Score
from search_spaces.errors import ConfigError, CorruptedWeightsError, RunStoppedError
from search_spaces.rank_space import RankVector
from tests.orchestrator.digits_run import digits_config
from workers.batch import run_model
from workers.import_path import import_object
from workers.scorer import judge


def plain_scorer(prepared: Prepared) -> Callable[[RankVector], Score]:
    """What anyone would write: assemble the network, run it."""
    factors = {
        layer.name: scheme.factorise(layer, prepared.model.get_submodule(layer.name).get_parameter("weight"))
        for layer, scheme in zip(prepared.found.layers, prepared.schemes, strict=True)
    }
    metric = import_object(prepared.config.metric, "metric")

    def score(ranks: RankVector) -> Score:
        network = assemble(prepared.model, prepared.found.layers, prepared.schemes, ranks, factors)
        with torch.inference_mode():
            values = judge(run_model(network, prepared.validation.inputs), prepared.validation, metric, None)
        assert values is not None
        return Score(ranks, {**values, "kl": 0.0})

    return score


def sequential_answer(prepared: Prepared) -> RankVector:
    """The search's answer when its candidates are scored one by one, by plain forward passes, in reverse order."""
    score = plain_scorer(prepared)
    search = search_methods().get("mbs", "").start(prepared.config.search, prepared.problem, None)
    while not search.done:
        for candidate in reversed(search.ask()):
            search.tell([score(candidate.ranks)])
    assert search.best is not None
    return search.best.ranks


@pytest.mark.parametrize("objective", ["cross_entropy", "accuracy"])
def test_same_answer_with_1_2_and_4_evaluators_and_one_by_one(
    ray_cluster: Cluster, digits_checkpoint: Path, tmp_path: Path, objective: str
) -> None:
    config = digits_config(digits_checkpoint, objective=objective)
    answers = []
    for evaluators in (1, 2, 4):
        config["cluster"]["evaluators"] = evaluators
        run = api.search(config, tmp_path / f"run-{evaluators}")
        assert run.result is not None
        answers.append(tuple(run.result["ranks"].values()))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] == sequential_answer(prepare(check_config(config, "test")))


def test_early_stopping_changes_no_answer(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path: Path) -> None:
    """The same candidates, the same answer and the same scores; fewer of them scored to the end."""

    def searched(early_stop: bool) -> api.Run:
        config = digits_config(digits_checkpoint, early_stop=early_stop)
        config["data"]["validation_size"] = 256
        return api.search(config, tmp_path / f"{early_stop}")

    to_the_end, stopping = searched(False), searched(True)
    assert to_the_end.result is not None
    assert stopping.result is not None
    for key in ("ranks", "scores", "in_window"):
        assert stopping.result[key] == to_the_end.result[key]
    assert stopping.result["stopped"] > 0 == to_the_end.result["stopped"]
    assert stopping.result["evaluations"] + stopping.result["stopped"] == to_the_end.result["evaluations"]
    rows, others = (run.evaluations.set_index("ranks") for run in (stopping, to_the_end))
    assert set(rows.index) == set(others.index)
    stopped = rows[rows["status"] == "stopped"]
    assert len(stopped) == stopping.result["stopped"]
    assert stopped["reason"].str.fullmatch(r"its loss is at least \S+, and \S+ was reached by enough others").all()
    scored = rows[rows["status"] == "ok"]
    assert (scored["loss"] - others.loc[scored.index, "loss"]).abs().max() < 1e-6


@pytest.fixture(scope="module")
def finished(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    return api.search(digits_config(digits_checkpoint), tmp_path_factory.mktemp("runs") / "finished")


class TestAFinishedRun:
    def test_ends_in_the_window(self, finished: api.Run) -> None:
        assert finished.result is not None
        assert finished.result["in_window"]
        assert 0.49 <= finished.result["costs"]["parameters"]["compression"] <= 0.5

    def test_result_has_the_keys_of_every_method(self, finished: api.Run) -> None:
        result = json.loads((Path(finished.location) / "result.json").read_text())
        keys = {"method", "seed", "budget", "ranks", "schemes", "costs", "scores", "evaluations", "seconds"}
        assert keys <= set(result)
        assert {"versions", "git_commit", "data", "model", "command"} <= set(result["provenance"])
        for cost in ("parameters", "macs", "volume"):
            assert {"dense", "compressed", "compression"} <= set(result["costs"][cost])
        for which in ("dense", "compressed"):
            for split in ("validation", "test"):
                assert set(result["scores"][which][split]) == {"accuracy", "loss"}
        assert set(result["ranks"]) == set(result["schemes"]) == {layer["name"] for layer in finished.space["layers"]}

    def test_costs_are_those_of_the_network_that_came_out(self, finished: api.Run) -> None:
        assert finished.result is not None
        network = api.load_compressed(finished.location)
        weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert sum(weight.numel() for weight in weights) == finished.result["costs"]["parameters"]["compressed"]

    def test_the_network_scores_what_the_search_said(self, finished: api.Run) -> None:
        assert finished.result is not None
        prepared = prepare(finished.config)
        network = api.load_compressed(finished.location)
        with torch.inference_mode():
            values = judge(
                run_model(network, prepared.validation.inputs),
                prepared.validation,
                import_object(finished.config.metric, "metric"),
                None,
            )
        ranks = tuple(finished.result["ranks"].values())
        row = finished.evaluations[finished.evaluations["ranks"] == ranks].iloc[0]
        assert values is not None
        assert values["loss"] == pytest.approx(row["loss"], rel=1e-4)
        said = finished.result["scores"]["compressed"]["validation"]
        assert values["accuracy"] == row["accuracy"] == said["accuracy"]

    def test_every_candidate_has_one_row_that_pandas_reads(self, finished: api.Run) -> None:
        assert finished.result is not None
        parts = sorted(Path(finished.location).glob("evaluations/*.parquet"))
        rows = pd.concat([pd.read_parquet(part) for part in parts])
        assert len(rows) == finished.result["evaluations"]
        assert not rows["ranks"].map(str).duplicated().any()
        assert set(rows["worker"]) == {"evaluator-1", "evaluator-2"}
        assert (rows["status"] == "ok").all()

    def test_made_of_ordinary_layers(self, finished: api.Run) -> None:
        for module in api.load_compressed(finished.location).modules():
            assert type(module).__module__.startswith("torch.nn")

    def test_resume_of_a_finished_run_reads_it(self, finished: api.Run) -> None:
        assert api.resume(finished.location).result == finished.result

    def test_the_same_run_twice_is_refused(self, finished: api.Run) -> None:
        with pytest.raises(ConfigError, match="exists and is not empty"):
            api.search(finished.config, finished.location)

    def test_data_that_changed_is_refused_on_resume(self, finished: api.Run, tmp_path: Path) -> None:
        source, target = Storage(finished.location), Storage(str(tmp_path / "copy"))
        for name in ("space.json", "search_state.json"):
            target.write(name, source.read(name))
        raw = yaml.safe_load(source.read("config.yaml"))
        raw["data"]["train"]["arguments"]["split"] = "test"
        target.write("config.yaml", yaml.safe_dump(raw).encode())
        with pytest.raises(ConfigError, match=r"data\.train: the data is not what this run began with"):
            api.resume(tmp_path / "copy")


class Watcher(Silent):
    """Calls back once, in the middle of a search."""

    def __init__(self, after: int, act: Callable[[], None]) -> None:
        self.after, self.act, self.lines = after, act, list[str]()

    def update(self, snapshot: Any) -> None:
        if self.after and snapshot.scored >= self.after:
            self.after = 0
            self.act()

    def say(self, line: str) -> None:
        self.lines.append(line)


def evaluator_processes() -> list[psutil.Process]:
    """The two evaluators of the run at hand; those of the run before may take a moment to go."""
    while True:
        children = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        found = [p for p in children if "ray::Evaluator" in " ".join(p.cmdline())]
        if len(found) == 2:
            return found
        time.sleep(0.05)


class TestFaults:
    def test_a_killed_evaluator_changes_nothing(
        self, finished: api.Run, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        watcher = Watcher(40, lambda: evaluator_processes()[0].send_signal(signal.SIGKILL))
        run = api.search(digits_config(digits_checkpoint), tmp_path / "run", observer=watcher)
        assert run.result is not None
        assert finished.result is not None
        assert run.result["ranks"] == finished.result["ranks"]
        assert run.result["evaluations"] == finished.result["evaluations"]
        assert any("was lost" in line for line in watcher.lines)

    def test_a_hung_evaluator_is_named_and_replaced(
        self, finished: api.Run, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        stopped: list[psutil.Process] = []

        def hang() -> None:
            stopped.append(evaluator_processes()[0])
            stopped[0].suspend()

        config = digits_config(digits_checkpoint)
        config["cluster"]["timeout_s"] = 3.0
        watcher = Watcher(40, hang)
        run = api.search(config, tmp_path / "run", observer=watcher)
        assert run.result is not None
        assert finished.result is not None
        assert run.result["ranks"] == finished.result["ranks"]
        assert any("taken for hung" in line for line in watcher.lines)

    def test_ctrl_c_leaves_a_run_that_resumes(self, finished: api.Run, digits_checkpoint: Path, tmp_path: Path) -> None:
        def interrupt() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

        with pytest.raises(RunStoppedError, match="go on with `rankray resume"):
            api.search(digits_config(digits_checkpoint), tmp_path / "run", observer=Watcher(60, interrupt))
        recorded = len(api.load_run(tmp_path / "run").evaluations)
        assert recorded >= 60
        resumed = api.resume(tmp_path / "run")
        assert resumed.result is not None
        assert finished.result is not None
        assert resumed.result["ranks"] == finished.result["ranks"]
        assert resumed.result["evaluations"] == finished.result["evaluations"]

    def test_two_processes_on_one_run_are_refused(
        self, ray_cluster: Cluster, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        errors: list[str] = []

        def second() -> None:
            try:
                api.resume(tmp_path / "run")
            except RunStoppedError as error:
                errors.append(str(error))

        def in_a_thread() -> None:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

        api.search(digits_config(digits_checkpoint), tmp_path / "run", observer=Watcher(20, in_a_thread))
        assert len(errors) == 1
        assert "another process works on this run" in errors[0]


def test_a_full_disk_stops_the_run_and_resume_ends_it(
    ray_cluster: Cluster, finished: api.Run, digits_checkpoint: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "run/evaluations/journal.jsonl"

    def fill() -> None:
        journal.unlink(missing_ok=True)
        journal.symlink_to("/dev/full")

    with pytest.raises(RunStoppedError, match="no space left on the device"):
        api.search(digits_config(digits_checkpoint), tmp_path / "run", observer=Watcher(60, fill))
    journal.unlink()
    resumed = api.resume(tmp_path / "run")
    assert resumed.result is not None
    assert finished.result is not None
    assert resumed.result["ranks"] == finished.result["ranks"]


def test_nan_candidates_are_recorded_and_ranked_last(ray_cluster: Cluster, tmp_path: Path) -> None:
    config = digits_config(Path("none"), settings=[{"step": 4, "beam_size": 2}])
    config["model"] = {"build": "tests.orchestrator.odd_networks:FailsWhenCompressed"}
    run = api.search(config, tmp_path / "run")
    assert run.result is not None
    assert run.result["ranks"]["fragile"] is None
    failed = run.evaluations[run.evaluations["status"] == "nan"]
    assert len(failed) > 0
    assert set(failed["changed"]) == {"fragile"}
    assert set(failed["reason"]) == {"the network's outputs are not finite"}


def test_a_write_to_the_shared_weights_is_caught(ray_cluster: Cluster, tmp_path: Path) -> None:
    config = copy.deepcopy(digits_config(Path("none"), settings=[{"step": 4, "beam_size": 2}]))
    config["model"] = {"build": "tests.orchestrator.odd_networks:WritesToItself"}
    with pytest.raises(CorruptedWeightsError, match="scale") as caught:
        api.search(config, tmp_path / "run")
    assert caught.value.arrays == ["scale"]
    # The scores since the last check are not in the run any more, but not lost to whoever investigates either.
    assert list((tmp_path / "run/evaluations").glob("distrusted-*.jsonl"))
