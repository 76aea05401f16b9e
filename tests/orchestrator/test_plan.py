"""The plan: what a search would do, counted by the search itself, and readable on a narrow terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from orchestrator import plan as plan_module
from orchestrator.config.loading import check_config
from orchestrator.plan import Plan, make_plan, show_plan
from orchestrator.preparation import Prepared, prepare
from orchestrator.searches.registry import search_methods
from search_spaces.candidates import Score
from search_spaces.rank_space import RankVector
from tests.orchestrator.searches.made_up import Pool


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Noise of 3 x 12 x 12."""

    labels = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 12, 12), number / 8), number % 4


def network() -> nn.Module:
    """A layer of each fate: factorised, too thin to shrink, grouped, and never called; with a long name."""
    torch.manual_seed(0)
    parts = nn.Sequential()
    parts.add_module("a_stem_with_quite_a_long_name_of_its_own", nn.Conv2d(3, 64, 3, padding=1))
    parts.add_module("grouped", nn.Conv2d(64, 64, 3, padding=1, groups=8))
    parts.add_module("wide", nn.Conv2d(64, 128, 3, padding=1, stride=2))
    parts.add_module("thin", nn.Conv2d(128, 1, 1))
    parts.add_module("flat", nn.Flatten())
    parts.add_module("head", nn.Linear(36, 4))
    return parts


def prepared(**search: Any) -> Prepared:
    raw = {
        "model": {"build": "tests.orchestrator.test_plan:network"},
        "data": {"train": {"dataset": "tests.orchestrator.test_plan:Images"}, "validation_size": 4},
        "search": {"method": "mbs", "budget": {"parameters": 0.5}, **search},
        "cluster": {"evaluators": 3},
    }
    return prepare(check_config(raw, "config"))


@pytest.fixture(scope="module")
def case() -> Prepared:
    return prepared()


def shown(case: Prepared, plan: Plan, width: int = 80) -> str:
    file = io.StringIO()
    show_plan(case, plan, Console(file=file, width=width))
    return file.getvalue()


PLAN = Plan(candidates=1234, complete=True, seconds_per_candidate=0.0124, evaluators=2)


class TestCounting:
    def test_candidates_are_those_that_the_search_asks_for(self, case: Prepared) -> None:
        def share_of_weights_left(ranks: RankVector) -> Score:
            gone = case.space.compression("parameters", ranks)
            return Score(ranks, {"accuracy": 1 - gone, "loss": gone, "kl": gone})

        pool = Pool(share_of_weights_left)
        pool.run(search_methods().get("mbs", "").start(case.config.search, case.problem, None))
        assert make_plan(case).candidates == len(pool.asked) > 100

    def test_more_settings_take_more_candidates(self) -> None:
        counts = [
            make_plan(prepared(settings=[{"step": step, "beam_size": 3} for step in steps])).candidates
            for steps in ([8], [8, 5])
        ]
        assert counts[0] < counts[1]

    def test_a_plan_is_the_same_every_time(self, case: Prepared) -> None:
        first, second = make_plan(case), make_plan(case)
        assert (first.candidates, first.complete, first.evaluators) == (second.candidates, True, 3)

    def test_a_dry_run_that_takes_too_long_says_at_least(self, case: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = make_plan(case)
        monkeypatch.setattr(plan_module, "_DRY_RUN_S", 0.0)
        cut = make_plan(case)
        assert (cut.complete, cut.candidates < whole.candidates) == (False, True)
        assert ", at least 1 candidates" in " ".join(shown(case, cut).split())

    def test_seconds_are_shared_by_the_evaluators(self) -> None:
        assert Plan(1000, True, 0.01, 4).seconds == 2.5

    def test_a_candidate_is_timed_and_nothing_is_left_changed(self, case: Prepared) -> None:
        threads, before = torch.get_num_threads(), [parameter.clone() for parameter in case.model.parameters()]
        assert make_plan(case).seconds_per_candidate > 0
        assert torch.get_num_threads() == threads
        assert all(map(torch.equal, before, case.model.parameters()))

    def test_evaluators_are_guessed_from_the_cores(self, case: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr("os.cpu_count", lambda: 8)
        settings = case.config.cluster.model_copy(update={"evaluators": "auto", "threads_per_evaluator": 3})
        assert plan_module._evaluators(settings) == 2


@pytest.fixture(scope="module")
def lines(case: Prepared) -> list[str]:
    return [line.rstrip() for line in shown(case, PLAN, 100).splitlines()]


class TestShowing:
    @staticmethod
    def row(lines: list[str], name: str) -> list[str]:
        return next(line for line in lines if line.startswith(name)).split()

    def test_every_layer_has_its_shape_its_ranks_and_its_costs(self, lines: list[str]) -> None:
        # 128 x (64 9) at 6 x 6 positions: r (576 + 128) < 73728 up to r = 104.
        assert self.row(lines, "wide") == ["wide", "128x64x3x3", "128", "104", "73.7", "k", "2.65", "M", "4.61", "k"]
        assert "4 layers, channel_svd" in lines

    def test_a_layer_that_no_rank_shrinks_says_so(self, lines: list[str]) -> None:
        assert self.row(lines, "thin")[:5] == ["thin", "1x128x1x1", "1", "stays", "dense"]

    def test_layers_left_out_have_their_reason(self, lines: list[str]) -> None:
        assert "1 left out" in lines
        assert "grouped  grouped convolution (groups = 8)" in lines

    def test_costs_say_how_far_they_can_be_brought_down(self, case: Prepared, lines: list[str]) -> None:
        # 64 x 27, 128 x 576, 1 x 128 and 4 x 36; at rank 1 91, 704, 128 (dense) and 40.
        assert self.row(lines, "parameters") == ["parameters", "75,728", "80,336", "up", "to", "0.9873"]
        assert self.row(lines, "volume")[3:] == ["no", "rank", "lowers", "it"]

    def test_the_sum_says_what_is_a_guess(self, lines: list[str]) -> None:
        text = " ".join(" ".join(lines).split())
        assert text.endswith(
            "search: mbs, 1,234 candidates (a dry run with made-up scores; the real number differs), "
            "12.4 ms each here, 2 evaluators: about 8 s; candidates that are stopped early take less"
        )

    @pytest.mark.parametrize("width", [58, 64, 73, 74, 80, 89, 90, 200])
    def test_no_number_is_cut_and_no_line_too_long(self, case: Prepared, width: int) -> None:
        lines = shown(case, PLAN, width).splitlines()
        assert max(map(len, lines)) <= width
        assert not any("…" in line for line in lines)
        assert " 104 " in next(line for line in lines if line.startswith("wide"))
        assert any(line.rstrip().endswith(" 73.7 k") or " 73.7 k " in line for line in lines)

    @pytest.mark.parametrize(
        ("width", "headings"),
        [
            (90, "layer weight full rank break-even parameters macs volume"),
            (74, "layer weight full rank break-even parameters"),
            (73, "layer full rank break-even parameters"),
            (58, "layer full rank break-even parameters"),
        ],
    )
    def test_a_narrow_terminal_shows_what_the_budget_limits(self, case: Prepared, width: int, headings: str) -> None:
        lines = shown(case, PLAN, width).splitlines()
        assert self.row(lines, "layer") == headings.split()

    def test_a_cost_that_the_budget_limits_is_shown_first_of_all(self) -> None:
        lines = shown(prepared(budget={"macs": 0.3}), PLAN, 60).splitlines()
        assert self.row(lines, "layer") == ["layer", "full", "rank", "break-even", "macs"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (2_359_296, "2.36 M"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (4.1e9, "4.1 G"),
    ],
)
def test_counts_are_shown_with_three_digits(count: float, text: str) -> None:
    assert plan_module._short(count) == text
