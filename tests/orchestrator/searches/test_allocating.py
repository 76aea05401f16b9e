"""The methods that allocate from error curves: within any budget, or told what can be reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.loading import check_config, dump_config, parse_mapping
from orchestrator.config.schema import Config
from orchestrator.searches.allocating import ALLOCATORS, METHODS
from orchestrator.searches.contract import Problem
from orchestrator.searches.mbs import MBS
from orchestrator.searches.registry import search_methods
from search_spaces.budgets import Budget
from search_spaces.candidates import Score
from search_spaces.costs import rank_space
from search_spaces.error_curves import MEASURES, ErrorCurve
from search_spaces.errors import ConfigError, InfeasibleBudgetError
from search_spaces.ladders import Frontier, with_ladders
from search_spaces.layers import Call, Layer, Stage
from search_spaces.rank_space import LayerRanks, RankSpace, RankVector
from search_spaces.schemes.registry import schemes
from search_spaces.survey import Survey
from tests.orchestrator.searches.made_up import Pool, ranks_of
from tests.orchestrator.searches.separable import TableCost

LAYERS = (
    Layer("first", Stage(3, 8, (3, 3), padding=(1, 1)), False, (Call(8, 8),)),
    Layer("wide", Stage(8, 12, (3, 3), (2, 2), (1, 1)), False, (Call(8, 8),)),
    Layer("point", Stage(12, 12), False, (Call(4, 4),)),
    Layer("head", Stage(12, 10, linear=True), True, (Call(1, 1),)),
)
"""Of four kinds; at 8 x 8 the first two have most of the multiply-accumulates, and `wide` most of the weights."""


@cache
def weight(layer: Layer) -> torch.Tensor:
    """Of a spectrum that falls."""
    torch.manual_seed(len(layer.name))
    matrix = torch.randn(layer.dense.weight_shape).flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * (values / torch.arange(1, len(values) + 1)) @ right).reshape(layer.dense.weight_shape)


@cache
def curve(scheme: str, layer: Layer, measure: str) -> ErrorCurve:
    return schemes().get(scheme, "").error_curve(layer, weight(layer), measure)


def config(method: str, budget: Mapping[str, float], **search: Any) -> Config:
    raw = {
        "model": {"build": "workers.models:digits_cnn"},
        "data": {"train": {"dataset": "workers.digits:digits"}},
        "search": {"method": method, "budget": dict(budget), **search},
    }
    return check_config(raw, "config")


def problem(chosen: Any, layers: tuple[Layer, ...] = LAYERS) -> Problem:
    """What the local step makes of the layers."""
    scheme, method = schemes().get(chosen.scheme, ""), search_methods().get(chosen.method, "")
    space = rank_space(Survey(layers, ()), (scheme,) * len(layers), binding=list(chosen.budget))
    curves = {name: [curve(chosen.scheme, layer, name) for layer in layers] for name in method.curves(chosen)}
    frontiers = [Frontier(one, most) for one in curves.values() for most in method.slice_limits(chosen)]
    laddered = with_ladders(space, frontiers, next(iter(chosen.budget)))
    budget = Budget.of(chosen.limits(batch_size=1), space)
    shapes = [scheme.matrix_shape(layer) for layer in layers]
    return Problem(laddered, budget, chosen.objective, chosen.seed, curves, shapes)


def scores(made: Problem) -> Any:
    """The network is as bad as the sum of its layers' errors."""
    curves = next(iter(made.curves.values()))
    errors = [{None: 0.0, **dict(zip(one.ranks, one.errors, strict=True))} for one in curves]

    def score(ranks: RankVector) -> Score:
        loss = sum(layer[rank] for layer, rank in zip(errors, ranks, strict=True))
        return Score(ranks, {"accuracy": -loss, "loss": loss, "kl": loss})

    return score


BUDGETS = st.one_of(
    st.fixed_dictionaries({"parameters": st.floats(0.05, 0.9)}),
    st.fixed_dictionaries({"macs": st.floats(0.05, 0.9)}),
    st.fixed_dictionaries({"parameters": st.floats(0.05, 0.8), "macs": st.floats(0.05, 0.8)}),
)


@pytest.mark.parametrize("scheme", ["channel_svd", "sliced_svd", "tucker2"])
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=6)
@given(budget=BUDGETS)
def test_every_method_meets_the_budget_or_says_how_far_it_can_be_met(
    method: str, scheme: str, budget: dict[str, float]
) -> None:
    chosen = config(method, budget, scheme=scheme).search
    refusal = None
    try:
        made = problem(chosen)
        search = METHODS[method].start(chosen, made, None)
        pool = Pool(scores(made))
        pool.run(search)
    except InfeasibleBudgetError as error:
        refusal = error
    if refusal is not None:
        assert refusal.key.startswith("search.budget")
        assert set(refusal.closest) <= set(budget)
        assert "\n" not in str(refusal)
        return
    assert search.best is not None
    assert search.best.in_window
    for cost, target in budget.items():
        assert made.space.compression(cost, search.best.ranks) >= target - 1e-12
    assert all(
        rank is None or rank in layer.offered for rank, layer in zip(search.best.ranks, made.space.layers, strict=True)
    )
    json.dumps(search.best.note, allow_nan=False)


@pytest.mark.parametrize("method", ["alds", "beam_around", "layerwise", "uniform"])
def test_a_budget_that_can_be_met_is(method: str) -> None:
    for budget in ({"parameters": 0.5}, {"macs": 0.5}, {"parameters": 0.4, "macs": 0.5}):
        chosen = config(method, budget, scheme="sliced_svd").search
        made = problem(chosen)
        search = METHODS[method].start(chosen, made, None)
        Pool(scores(made)).run(search)
        assert search.best is not None
        assert search.best.in_window


class TestALDS:
    def test_scores_one_allocation_for_each_measure_and_limit(self) -> None:
        chosen = config("alds", {"parameters": 0.6}, scheme="sliced_svd", measures=["max_slice", "frobenius"]).search
        made = problem(chosen)
        asked = METHODS["alds"].start(chosen, made, None).ask()
        names = {"alds max_slice", "alds max_slice k<=8", "alds frobenius", "alds frobenius k<=8"}
        assert {one.search for one in asked} <= names
        assert len(asked) == len(set(ranks_of(asked))) >= 1

    def test_limits_are_kept(self) -> None:
        chosen = config("alds", {"parameters": 0.6}, scheme="sliced_svd", slice_limits=[1]).search
        made = problem(chosen)
        search = METHODS["alds"].start(chosen, made, None)
        Pool(scores(made)).run(search)
        assert search.best is not None
        assert all(rank is None or rank[0] == 1 for rank in search.best.ranks)  # type: ignore[index]

    def test_more_limits_are_never_worse(self) -> None:
        found = {}
        for limits in ([1], [None], [None, 1, 2, 4]):
            chosen = config(
                "alds", {"parameters": 0.6}, scheme="sliced_svd", measures=["frobenius"], slice_limits=limits
            ).search
            made = problem(chosen)
            search = METHODS["alds"].start(chosen, made, None)
            Pool(scores(made)).run(search)
            assert search.best is not None
            found[str(limits)] = search.best.score.values["accuracy"]
        assert found["[None, 1, 2, 4]"] >= max(found["[1]"], found["[None]"])

    def test_plain_ranks_make_one_allocation_of_a_measure(self) -> None:
        chosen = config("alds", {"parameters": 0.5}, measures=["frobenius"]).search
        assert len(METHODS["alds"].start(chosen, problem(chosen), None).ask()) == 1


class TestCurves:
    """Which errors a method wants to know."""

    @pytest.mark.parametrize(
        ("method", "search", "measures"),
        [
            ("alds", {"measures": ["operator", "bound"]}, ("operator", "bound")),
            ("uniform", {"measure": "bound"}, ("bound",)),
            ("energy", {"measure": "bound"}, ("frobenius",)),
            ("layerwise", {"measure": "operator"}, ("operator",)),
            ("beam_around", {"measure": "bound"}, ("bound",)),
            ("beam_around", {"around": ["energy", "alds", "vbmf"]}, ("frobenius", "max_slice")),
        ],
    )
    def test_of_a_method(self, method: str, search: dict[str, Any], measures: tuple[str, ...]) -> None:
        chosen = config(method, {"parameters": 0.5}, **search).search
        assert tuple(METHODS[method].curves(chosen)) == measures

    def test_a_beam_search_wants_none(self) -> None:
        assert MBS.curves(config("mbs", {"parameters": 0.5}).search) == ()

    def test_slices_are_limited_by_alds_alone(self) -> None:
        chosen = config("alds", {"parameters": 0.5}, slice_limits=[None, 4]).search
        assert tuple(METHODS["alds"].slice_limits(chosen)) == (None, 4)
        for method in ("uniform", "beam_around", "layerwise"):
            assert METHODS[method].slice_limits(config(method, {"parameters": 0.5}).search) == (None,)


class TestBadInput:
    @pytest.mark.parametrize(
        ("method", "search", "message"),
        [
            (
                "alds",
                {"measures": ["max_slise"]},
                "search.measures: unknown measure 'max_slise'; did you mean 'max_slice'",
            ),
            ("alds", {"measures": []}, f"search.measures: is empty; give some of {', '.join(MEASURES)}"),
            ("alds", {"slice_limits": []}, "search.slice_limits: is empty; give [null] for no limit"),
            ("alds", {"slice_limits": [0]}, "search.slice_limits.0"),
            (
                "uniform",
                {"measure": "frobenus"},
                "search.measure: unknown measure 'frobenus'; did you mean 'frobenius'",
            ),
            ("uniform", {"measures": ["operator"]}, "search.measures: unknown key; did you mean 'measure'"),
            ("beam_around", {"around": ["ald"]}, "search.around: unknown allocation 'ald'; did you mean 'alds'"),
            ("beam_around", {"around": []}, f"search.around: is empty; give some of {', '.join(ALLOCATORS)}"),
            ("beam_around", {"moves": []}, "search.moves: is empty; give numbers of rungs, such as [1, 2]"),
            ("beam_around", {"moves": [0]}, "search.moves.0: input should be greater than or equal to 1, not 0"),
            ("beam_around", {"rounds": 0}, "search.rounds: input should be greater than or equal to 1, not 0"),
            ("beam_around", {"objective": "kll"}, "search.objective: unknown objective 'kll'; did you mean 'kl'"),
            ("layerwise", {"ratios": 0}, "search.ratios: input should be greater than or equal to 1, not 0"),
            ("greedy_ratio", {"allocations": "many"}, "search.allocations: "),
        ],
    )
    def test_is_one_clear_line(self, method: str, search: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            config(method, {"parameters": 0.5}, **search)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_written_config_reads_back(self, method: str) -> None:
        chosen = config(method, {"parameters": 0.5, "macs": 0.25})
        assert check_config(parse_mapping(dump_config(chosen), "config"), "config") == chosen


def _contradiction() -> Problem:
    """Rank 1 saves parameters and takes the operations of rank 2, which saves operations alone."""
    tables = {"parameters": [{1: 2.0, 2: 9.0, None: 10.0}], "macs": [{1: 9.0, 2: 2.0, None: 10.0}]}
    costs = {name: TableCost(name, table) for name, table in tables.items()}  # type: ignore[arg-type]
    space = RankSpace((LayerRanks("only", 2, 2),), costs)
    curves = {name: [ErrorCurve((1, 2), (0.5, 0.4), (2.0, 1.0))] for name in MEASURES}
    return Problem(space, Budget((("parameters", 0.5), ("macs", 0.5))), "kl", 0, curves, ((2, 2),))


@pytest.mark.parametrize("method", METHODS)
def test_limits_that_exclude_each_other_are_both_named_before_anything_is_scored(method: str) -> None:
    chosen = config(method, {"parameters": 0.5, "macs": 0.5}).search
    with pytest.raises(
        InfeasibleBudgetError, match=r"parameters .* and macs .* can each be met but not together"
    ) as caught:
        METHODS[method].start(chosen, _contradiction(), None)
    assert set(caught.value.closest) == {"parameters", "macs"}


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_below_rank_1_everywhere_is_refused(method: str) -> None:
    chosen = config(method, {"parameters": 0.5}, scheme="sliced_svd").search
    made = replace(problem(chosen), budget=Budget((("parameters", 0.99),)))
    with pytest.raises(
        InfeasibleBudgetError, match=r"^search\.budget\.parameters: .*the closest that can be reached is 0\."
    ):
        METHODS[method].start(chosen, made, None)


class TestLayerwise:
    @pytest.mark.parametrize("method", ["layerwise", "greedy_ratio"])
    def test_scores_ratios_of_every_layer_and_allocations_of_these_alone(self, method: str) -> None:
        chosen = config(method, {"parameters": 0.5}, scheme="sliced_svd", ratios=3, allocations=2).search
        made = problem(chosen)
        search, pool = METHODS[method].start(chosen, made, None), Pool(scores(made))
        pool.run(search)
        alone = [one for one in pool.asked if one.level == 0]
        probed = [{one.ranks[index] for one in alone} for index in range(len(LAYERS))]
        assert all(len(ranks) <= 4 for ranks in probed)
        later = [one for one in pool.asked if one.level == 1]
        assert 0 < len(later) <= 3
        for one in later:
            assert all(rank in ranks for rank, ranks in zip(one.ranks, probed, strict=True))

    def test_one_ratio_reaches_as_far_as_the_space(self) -> None:
        chosen = config("layerwise", {"parameters": 0.5}, scheme="sliced_svd", ratios=1).search
        made = problem(chosen)
        furthest = made.space.compression("parameters", made.space.smallest)
        made = replace(made, budget=Budget((("parameters", furthest),)))
        search = METHODS["layerwise"].start(chosen, made, None)
        Pool(scores(made)).run(search)
        assert search.best is not None
        assert search.best.ranks == made.space.smallest

    def test_what_failed_alone_is_not_taken(self) -> None:
        chosen = config("layerwise", {"parameters": 0.5}, scheme="sliced_svd").search
        made = problem(chosen)
        usual = scores(made)

        def score(ranks: RankVector) -> Score:
            fragile = ranks[0] is not None and sum(rank is not None for rank in ranks) == 1
            return Score(ranks, status="nan") if fragile else usual(ranks)

        search = METHODS["layerwise"].start(chosen, made, None)
        Pool(score).run(search)
        assert search.best is not None
        assert search.best.ranks[0] is None


def test_equal_starts_of_a_beam_are_scored_once() -> None:
    chosen = config("beam_around", {"parameters": 0.5}, around=["alds", "alds", "uniform"]).search
    made = problem(chosen)
    asked = METHODS["beam_around"].start(chosen, made, None).ask()
    assert asked[0].search == "start alds"
    assert len(asked) == len(set(ranks_of(asked))) <= 2


def test_a_beam_goes_on_from_its_state() -> None:
    chosen = config("beam_around", {"parameters": 0.5}, scheme="sliced_svd").search
    made = problem(chosen)
    search, pool = METHODS["beam_around"].start(chosen, made, None), Pool(scores(made))
    pool.step(search)
    again = METHODS["beam_around"].start(chosen, made, json.loads(json.dumps(search.state())))
    assert again.level == search.level == 1
    assert again.best == search.best
    assert again.ask() == search.ask()
