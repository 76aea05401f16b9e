"""The loop between searches, a pool and run directories, on scores that are made up: what one search meets is its own.

The pool here scores in this process, in an order of its own; the real one is in the tests of runs and comparisons.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.loading import check_config
from orchestrator.course import Course
from orchestrator.evaluation_log import EvaluationLog, read_evaluations
from orchestrator.following import Following
from orchestrator.preparation import Prepared, prepare
from orchestrator.progress import Silent
from orchestrator.run_directory import RunDirectory
from orchestrator.score_memory import ScoreMemory
from orchestrator.searches.beam_search import BeamSearch, BeamSetting
from orchestrator.shared_time import SharedTime
from search_spaces.candidates import Bound, Candidate, Score
from search_spaces.errors import CorruptedWeightsError, RankRayError, RunInterruptedError, RunStoppedError
from tests.orchestrator.digits_run import digits_config
from tests.orchestrator.searches.made_up import MadeUpScores, Pool

SETTINGS = {"wide": BeamSetting(8, 3, 0.01), "narrow": BeamSetting(8, 1, 0.01), "other": BeamSetting(12, 2, 0.01)}
SCORES = MadeUpScores(seed=3, distinct=1000)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    config = digits_config(Path("none"))
    config["model"] = {"build": "workers.models:digits_cnn"}
    return prepare(check_config(config, "test"))


@dataclass
class InProcess:
    """A pool without evaluators.

    Attributes:
        interrupt_after, damaged_after: scores after which Ctrl-C is pressed, or the weights are found changed.
        scored: rank vectors, as often as they were scored.
    """

    interrupt_after: int = 10**9
    damaged_after: int = 10**9
    scored: Counter[Any] = field(default_factory=Counter)
    alive: tuple[str, ...] = ("evaluator-1",)
    _waiting: list[Candidate] = field(default_factory=list)
    _drawn: random.Random = field(default_factory=lambda: random.Random(0))

    def submit(self, candidates: Sequence[Candidate], _asker: str, _bound: Bound | None) -> None:
        self._waiting += candidates

    def collect(self) -> list[Score]:
        if self.scored.total() >= self.interrupt_after:
            raise KeyboardInterrupt
        assert self._waiting, "searches wait for what nobody was asked for"
        ranks = self._waiting.pop(self._drawn.randrange(len(self._waiting))).ranks
        self.scored[ranks] += 1
        return [SCORES(ranks)]

    def check_weights(self) -> None:
        if self.scored.total() >= self.damaged_after:
            raise CorruptedWeightsError(["conv.weight"])


class Failing(BeamSearch):
    """Meets a full disk in the middle."""

    left = 10

    def tell(self, scores: Sequence[Score]) -> None:
        self.left -= len(scores)
        if self.left < 0:
            raise RunStoppedError("no space left")
        super().tell(scores)


class Group:
    """Searches that are followed together."""

    def __init__(self, prepared: Prepared, folder: Path, pool: InProcess, failing: str = "") -> None:
        self.pool, shared_time = pool, SharedTime(SETTINGS)
        self.ends: dict[str, RankRayError | None] = {}
        self.courses = {}
        for name, setting in SETTINGS.items():
            run = RunDirectory.create(str(folder / name), prepared)
            log = EvaluationLog(run.storage, prepared.space, "parameters")
            search = (Failing if name == failing else BeamSearch)(prepared.problem, setting)
            self.courses[name] = Course(name, prepared, run, log, search, set(), set(), 0.0, shared_time)

    def follow(self) -> None:
        def ended(course: Course, error: RankRayError | None) -> None:
            self.ends[course.name] = error

        courses: Any = list(self.courses.values())
        pool: Any = self.pool
        times = next(iter(courses)).shared_time
        Following(courses, pool, ScoreMemory(), times, Silent(), ended).follow()

    def rows(self, name: str) -> Any:
        return read_evaluations(self.courses[name].run.storage)


def alone(prepared: Prepared, name: str) -> tuple[Any, set[Any]]:
    """A search's answer, and the keys of the scores that it needs, when nobody else is there."""
    search, pool = BeamSearch(prepared.problem, SETTINGS[name]), Pool(SCORES)
    pool.run(search)
    return search.best, {score.key for score in pool.told}


def test_each_finds_and_records_what_it_does_alone_and_nothing_is_scored_twice(
    prepared: Prepared, tmp_path: Path
) -> None:
    group = Group(prepared, tmp_path, InProcess())
    group.follow()
    assert group.ends == dict.fromkeys(SETTINGS)
    needed: set[Any] = set()
    for name, course in group.courses.items():
        best, told = alone(prepared, name)
        assert course.search.best == best
        rows = group.rows(name)
        assert set(zip(rows["ranks"], rows["precision"], strict=True)) == course.held == told
        needed |= told
    assert group.pool.scored == Counter(ranks for ranks, _precision in needed)
    own = sum(int((~group.rows(name)["taken_over"]).sum()) for name in SETTINGS)
    assert own == len(needed) < sum(len(course.held) for course in group.courses.values())


def test_one_that_fails_in_the_middle_ends_alone(prepared: Prepared, tmp_path: Path) -> None:
    group = Group(prepared, tmp_path, InProcess(), failing="wide")
    group.follow()
    assert str(group.ends.pop("wide")) == "no space left"
    assert group.ends == {"narrow": None, "other": None}
    for name in group.ends:
        assert group.courses[name].search.best == alone(prepared, name)[0]


def test_ctrl_c_saves_them_all_and_says_how_to_go_on(prepared: Prepared, tmp_path: Path) -> None:
    group = Group(prepared, tmp_path, InProcess(interrupt_after=20))
    with pytest.raises(RunInterruptedError, match="interrupted after 20 candidates") as caught:
        group.follow()
    for name, course in group.courses.items():
        assert f"`rankray resume {tmp_path / name}`" in str(caught.value)
        saved = json.loads((tmp_path / name / "search_state.json").read_text())
        assert saved["search"] == json.loads(json.dumps(course.search.state()))
        assert len(group.rows(name)) == len(course.held)


def test_where_the_weights_were_written_to_no_run_keeps_scores_that_nobody_vouches_for(
    prepared: Prepared, tmp_path: Path
) -> None:
    group = Group(prepared, tmp_path, InProcess(damaged_after=1))
    with pytest.raises(CorruptedWeightsError):
        group.follow()
    assert group.ends == {}
    for name in SETTINGS:
        assert group.rows(name).empty
        assert list((tmp_path / name / "evaluations").glob("distrusted-*.jsonl"))
