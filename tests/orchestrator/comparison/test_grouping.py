"""Which runs share their evaluators: those for which a rank vector has one and the same score."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.comparison.grouping import grouped
from tests.orchestrator.comparison.conftest import planned


def names(searches: dict[str, Any], **compare: Any) -> list[list[str]]:
    groups = grouped(planned({"budgets": [0.5], "searches": searches, **compare}))
    return [[run.name for run in group] for group in groups]


def test_methods_budgets_and_settings_share_them() -> None:
    searches = {"mbs": {"settings": [{"step": 3, "beam_size": 5}]}, "energy": {}, "uniform": {}}
    (group,) = names(searches, budgets=[0.3, 0.5, {"macs": 0.4}])
    assert len(group) == 9


@pytest.mark.parametrize(("early_stop", "groups"), [(False, 1), (True, 2)])
def test_an_objective_keeps_them_apart_only_where_it_stops_children(early_stop: bool, groups: int) -> None:
    assert (
        len(names({"one": {"early_stop": early_stop}, "other": {"early_stop": early_stop, "objective": "kl"}}))
        == groups
    )


@pytest.mark.parametrize(
    "other",
    [
        {"scheme": "tucker2"},
        {"norm": "activation"},
        {"last_stage": "fitted"},
        {"bias": "corrected"},
        {"batch_norm": "reestimated"},
        {"include": ["conv*"]},
        {"exclude": ["linear"]},
    ],
)
def test_what_changes_a_rank_vectors_score_keeps_them_apart(other: dict[str, Any]) -> None:
    assert names({"one": {}, "other": other, "again": {}}) == [["one-0.5-s0", "again-0.5-s0"], ["other-0.5-s0"]]


def test_each_seed_has_its_own_validation_batch() -> None:
    assert names({"one": {}}, seeds=[3, 4]) == [["one-0.5-s3"], ["one-0.5-s4"]]


def test_fitted_last_stages_are_the_same_where_the_same_ranks_are_offered() -> None:
    searches = {"one": {"last_stage": "fitted"}, "other": {"last_stage": "fitted"}}
    budgets = [0.3, 0.5, {"macs": 0.4}]
    assert [len(group) for group in names(searches, budgets=budgets)] == [2, 2, 1, 1]
