"""Runs on the same evaluators: what each finds alone, no rank vector scored twice, also where they are killed."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock

from orchestrator import api
from orchestrator.progress import Silent, Snapshot
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import RunInterruptedError
from tests.orchestrator.digits_run import digits_config

NAMES = ["wide-0.3-s0", "narrow-0.3-s0", "uniform-0.3-s0", "wide-0.5-s0", "narrow-0.5-s0", "uniform-0.5-s0"]
ONE_BY_ONE = ["wide-0.3-s0", "wide-0.5-s0", "narrow-0.5-s0"]


def config(checkpoint: Path, *, early_stop: bool = False) -> dict[str, Any]:
    """Two settings of mBS and a baseline of one candidate, under two budgets.

    Without early stops, because which candidates are stopped depends on who is scored first.
    """
    searches = {
        "wide": {"method": "mbs", "settings": [{"step": 12, "beam_size": 3}]},
        "narrow": {"method": "mbs", "settings": [{"step": 16, "beam_size": 1}]},
        "uniform": {},
    }
    return {
        **digits_config(checkpoint, early_stop=early_stop),
        "compare": {"budgets": [0.3, 0.5], "searches": searches},
    }


class Watcher(Silent):
    """Remembers what it was shown; may end everything in the middle."""

    def __init__(self, after: int = 10**9, error: type[BaseException] = RuntimeError) -> None:
        self.after, self.error = after, error
        self.seen: list[Snapshot] = []
        self.lines: list[str] = []

    def update(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot)
        if snapshot.scored >= self.after:
            raise self.error

    def say(self, line: str) -> None:
        self.lines.append(line)


def scored(place: Path) -> Counter[str]:
    """How often each rank vector was scored over all runs of a comparison."""
    tables = [api.load_run(run.parent).evaluations for run in place.glob("*/config.yaml")]
    rows = pd.concat(tables)
    return Counter(map(str, rows.loc[~rows["taken_over"], "ranks"]))


@pytest.fixture(scope="module")
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture(scope="module")
def together(
    ray_cluster: Cluster, digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, watcher: Watcher
) -> api.Comparison:
    place = tmp_path_factory.mktemp("interleaved") / "together"
    return api.compare(config(digits_checkpoint), place, observer=watcher)


class TestRunsOnTheSameEvaluators:
    @pytest.mark.parametrize("name", ONE_BY_ONE)
    def test_find_what_each_finds_alone(
        self, together: api.Comparison, digits_checkpoint: Path, tmp_path: Path, name: str
    ) -> None:
        run = api.load_run(Path(together.location, name))
        alone = api.search(run.config, tmp_path / "alone")
        assert alone.result is not None
        assert run.result is not None
        for key in ("ranks", "costs", "scores", "evaluations", "in_window", "search", "note"):
            assert run.result[key] == alone.result[key], key
        columns = ["level", "search", "parent", "changed", "accuracy", "loss", "kl", "status"]
        held, alones = (
            one.evaluations.assign(key=one.evaluations["ranks"].map(str)).set_index("key").sort_index()
            for one in (run, alone)
        )
        pd.testing.assert_frame_equal(held[columns], alones[columns], check_exact=True)

    def test_score_no_rank_vector_twice(self, together: api.Comparison) -> None:
        assert max(scored(Path(together.location)).values()) == 1
        assert together.table["taken_over"].sum() > 50, "nothing was shared"

    def test_each_hold_every_score_that_they_used(self, together: api.Comparison) -> None:
        for row in together.table.to_dict("records"):
            run = api.load_run(row["run"])
            assert len(run.evaluations) == row["evaluations"]
            assert run.evaluations["taken_over"].sum() == row["taken_over"]
            assert run.result is not None
            assert tuple(run.result["ranks"].values()) in set(run.evaluations["ranks"])

    def test_seconds_are_parts_of_one_whole(self, together: api.Comparison) -> None:
        """What a search took over costs nothing, so nobody is charged with what another one is charged with."""
        assert (together.table["seconds"] > 0).all()
        seconds = together.table.set_index(together.table["run"].map(lambda run: Path(run).name))["seconds"]
        assert seconds["uniform-0.3-s0"] < seconds["wide-0.5-s0"]

    def test_find_the_same_where_what_cannot_matter_is_stopped(
        self, together: api.Comparison, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        """Also where one search stopped what another one needs."""
        stopping = api.compare(config(digits_checkpoint, early_stop=True), tmp_path / "stopping")
        alike = ["search", "budget", "in_window", "compression_parameters", "validation_accuracy"]
        pd.testing.assert_frame_equal(stopping.table[alike], together.table[alike])
        for row in stopping.table.to_dict("records"):
            run = api.load_run(row["run"])
            assert run.result is not None
            assert run.result["evaluations"] == (run.evaluations["status"] != "stopped").sum()

    def test_are_followed_at_once_and_the_small_ones_end_first(
        self, watcher: Watcher, together: api.Comparison
    ) -> None:
        assert watcher.lines[0] == (f"group 1 of 1: 6 searches interleaved on the same evaluators: {', '.join(NAMES)}")
        ended = [line.partition(":")[0] for line in watcher.lines[1:]]
        assert sorted(ended) == sorted(NAMES)
        assert ended.index("uniform-0.5-s0") < ended.index("wide-0.3-s0")
        middle = watcher.seen[len(watcher.seen) // 2]
        assert [one.name for one in middle.searches] == NAMES
        assert sum(one.level > 0 for one in middle.searches) > 2


class TestACutShortComparison:
    def test_goes_on_where_it_was_killed(
        self, together: api.Comparison, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        """Killed without any chance to save: what is left is what each run recorded."""
        place = tmp_path / "killed"
        with pytest.raises(RuntimeError):
            api.compare(config(digits_checkpoint), place, observer=Watcher(60))
        before = scored(place)
        resumed = api.resume_comparison(place)
        self.check(together, resumed)
        assert max(scored(place).values()) == 1, "a recorded candidate was scored again"
        assert set(before) <= set(scored(place))

    def test_and_where_somebody_pressed_ctrl_c(
        self, together: api.Comparison, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        place = tmp_path / "interrupted"
        with pytest.raises(RunInterruptedError, match=f"go on with `rankray resume {place}`"):
            api.compare(config(digits_checkpoint), place, observer=Watcher(60, KeyboardInterrupt))
        self.check(together, api.resume_comparison(place))
        assert max(scored(place).values()) == 1

    def test_a_run_that_fails_ends_no_other_and_finished_ones_give_their_scores(
        self, together: api.Comparison, tmp_path: Path
    ) -> None:
        place = Path(shutil.copytree(together.location, tmp_path / "copied"))
        (place / "wide-0.3-s0" / "result.json").unlink()
        (place / "narrow-0.5-s0" / "result.json").unlink()
        shutil.rmtree(place / "uniform-0.5-s0")
        with FileLock(place / "wide-0.3-s0" / ".lock"):
            table = api.resume_comparison(place).table.set_index("search", append=True)
        status = dict(zip(NAMES, table["status"], strict=True))
        assert status.pop("wide-0.3-s0") == "failed"
        assert set(status.values()) == {"finished"}
        self.check(together, api.resume_comparison(place))

    @staticmethod
    def check(whole: api.Comparison, resumed: api.Comparison) -> None:
        alike = ["search", "budget", "best", "compression_parameters", "validation_loss", "test_accuracy"]
        alike += ["evaluations", "status"]
        pd.testing.assert_frame_equal(resumed.table[alike], whole.table[alike])
