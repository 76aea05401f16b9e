"""The `compare` block: which runs it asks for, what they take over from `search`, and every mistake by its key."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.comparison.settings import complete, planned_runs
from orchestrator.searches.mbs import MBSSettings
from orchestrator.searches.registry import search_methods
from search_spaces.errors import ConfigError
from tests.orchestrator.comparison.conftest import planned, raw_config


def test_every_search_meets_every_budget_with_every_seed() -> None:
    runs = planned({"budgets": [0.5, 0.25], "seeds": [3, 1], "searches": {"alds": {}, "uniform": None}})
    assert [run.name for run in runs] == [
        *("alds-0.5-s3", "uniform-0.5-s3", "alds-0.5-s1", "uniform-0.5-s1"),
        *("alds-0.25-s3", "uniform-0.25-s3", "alds-0.25-s1", "uniform-0.25-s1"),
    ]
    for run in runs:
        search = run.config.search
        assert run.name == f"{search.method}-{search.budget['parameters']}-s{search.seed}"


def test_without_searches_all_methods_are_compared_with_the_scheme_of_the_config() -> None:
    runs = planned({"budgets": [0.5]}, scheme="spatial_svd", seed=7)
    assert [run.search for run in runs] == [run.config.search.method for run in runs] == search_methods().names()
    assert {(run.config.search.scheme, run.config.search.seed) for run in runs} == {("spatial_svd", 7)}


def test_a_search_of_the_same_method_takes_all_keys_over_and_one_of_another_what_all_have() -> None:
    compare = {"budgets": [0.5], "searches": {"small": {"gamma": 0.3}, "alds": {}, "uniform": {"norm": "activation"}}}
    small, alds, uniform = planned(compare, tolerance=0.02, settings=[{"step": 9, "beam_size": 2}], exclude=["x*"])
    assert isinstance(small.config.search, MBSSettings)
    assert small.config.search.tolerance == 0.02
    assert [one.step for one in small.config.search.settings] == [9]
    assert small.config.search.gamma == 0.3
    assert alds.config.search.exclude == ("x*",)
    assert (alds.config.search.method, alds.config.search.norm) == ("alds", "weight")
    assert uniform.config.search.norm == "activation"


def test_a_key_that_search_leaves_out_has_its_methods_own_default() -> None:
    raw = raw_config({"budgets": [0.5], "searches": {"beam_around": {}, "mbs": {}}})
    del raw["search"]["objective"]
    objectives = [run.config.search.objective for run in planned_runs(complete(raw, "config"))]
    assert objectives == ["kl", "accuracy"]


def test_budgets_may_be_mappings_or_lists_of_limits_and_absolute() -> None:
    budgets = [{"macs": 0.5}, [{"parameters": 0.5}, {"macs": 0.4}], 1234567]
    runs = planned({"budgets": budgets, "searches": {"alds": {}}})
    assert [run.name for run in runs] == ["alds-macs0.5-s0", "alds-parameters0.5+macs0.4-s0", "alds-1234567-s0"]
    assert [run.budget for run in runs] == ["macs 0.5", "parameters 0.5, macs 0.4", "parameters 1234567"]


def test_what_is_written_down_asks_for_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "here")
    raw = raw_config({"budgets": [0.5]})
    raw["model"]["checkpoint"] = "${WHERE}/net.pt"
    completed = complete(raw, "config")
    monkeypatch.delenv("WHERE")
    assert completed["compare"]["searches"]["vbmf"] == {"method": "vbmf"}
    runs = planned_runs(completed)
    assert planned_runs(complete(completed, "config")) == runs
    assert {run.config.model.checkpoint for run in runs} == {"here/net.pt"}


@pytest.mark.parametrize(
    ("compare", "search", "message"),
    [
        (None, {}, "config: compare: is missing; a comparison needs `compare: {budgets: [0.5, 0.7]}`"),
        ({}, {}, "compare.budgets: is missing"),
        ({"budgets": []}, {}, "compare.budgets: "),
        ({"budgets": 0.5}, {}, "compare.budgets: "),
        ({"budgets": [0.5], "seed": [0]}, {}, "compare.seed: unknown key; did you mean 'seeds'?"),
        ({"budgets": [0.5, 0.5]}, {}, "compare.budgets.1: parameters 0.5 stands twice"),
        ({"budgets": [0.5, {"parameters": 0.5}]}, {}, "compare.budgets.1: parameters 0.5 stands twice"),
        ({"budgets": [0.5, -1], "searches": {"alds": {}}}, {}, "compare.budgets.1: parameters = -1 is neither "),
        ({"budgets": [0.5, "much"]}, {}, "compare.budgets.1: parameters = much is no number; "),
        ({"budgets": [{}]}, {}, "compare.budgets.0: is empty"),
        ({"budgets": [0.5]}, {"budget": {"parameters": 0.5, "macs": 0.4}}, "compare.budgets.0: is one number, but "),
        ({"budgets": [0.5], "seeds": []}, {}, "compare.seeds: "),
        ({"budgets": [0.5], "seeds": [1, 1]}, {}, "compare.seeds: a seed stands twice"),
        ({"budgets": [0.5], "seeds": [-1]}, {}, "compare.seeds.0: "),
        ({"budgets": [0.5], "searches": {}}, {}, "compare.searches: "),
        ({"budgets": [0.5], "searches": {"a": 3}}, {}, "compare.searches.a"),
        ({"budgets": [0.5], "searches": {"../a": {}}}, {}, "compare.searches: '../a' cannot name a folder"),
        ({"budgets": [0.5], "searches": {"alds": {"seed": 1}}}, {}, "compare.searches.alds.seed: is the same for all"),
        ({"budgets": [0.5], "searches": {"alds": {"budget": {}}}}, {}, "compare.searches.alds.budget: is the same "),
        ({"budgets": [0.5], "searches": {"a": {"method": "aldz"}}}, {}, "compare.searches.a.method: unknown search "),
        ({"budgets": [0.5], "searches": {"alds": {"tolerance": 0.1}}}, {}, "compare.searches.alds.tolerance: unknown "),
        (
            {"budgets": [0.5], "searches": {"a": {"setings": []}}},
            {},
            "compare.searches.a.setings: unknown key; did you",
        ),
        (
            {"budgets": [0.5], "searches": {"mbs": {"tolerance": 0.6}}},
            {},
            "compare.searches.mbs: tolerance 0.6 is not ",
        ),
        ({"budgets": [0.5]}, {"tolerence": 0.1}, "search.tolerence: unknown key; did you mean 'tolerance'?"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(compare: Any, search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        planned(compare, **search)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_errors_that_name_other_keys_keep_them() -> None:
    (run,) = planned({"budgets": [0.5], "searches": {"alds": {}}})
    with pytest.raises(ConfigError, match=r"^model\.build: is wrong$"), run.keys():
        raise ConfigError("model.build", "is wrong")
    with pytest.raises(ConfigError, match=r"^compare\.budgets\.0\.colour: is wrong$"), run.keys():
        raise ConfigError("search.budget.colour", "is wrong")
