"""Budgets: ratios and absolute limits, several at once, and the ones that cannot be met."""

from __future__ import annotations

import pickle

import pytest

from search_spaces.budgets import Budget, Limit
from search_spaces.errors import ConfigError, InfeasibleBudgetError
from search_spaces.rank_space import LayerRanks, RankSpace


class TableCost:
    """A cost written out: one row per layer, the dense cost first, then those of ranks 1, 2, ..."""

    def __init__(self, name: str, table: list[list[float]], elsewhere: float) -> None:
        self.name, self.table, self.elsewhere = name, table, elsewhere

    def of(self, layer: int, rank: int | None) -> float:
        return self.table[layer][rank or 0]


SPACE = RankSpace(
    (LayerRanks("a", 3, 2), LayerRanks("b", 3, 2)),
    {
        "parameters": TableCost("parameters", [[60, 20, 40, 60], [40, 15, 30, 45]], elsewhere=100),
        "macs": TableCost("macs", [[600, 200, 400, 600], [6400, 2400, 4800, 7200]], elsewhere=3000),
    },
)


def test_a_ratio_is_the_compression_of_the_spaces_layers() -> None:
    assert Limit("parameters", 0.5, "ratio").compression(SPACE) == 0.5


def test_an_absolute_limit_is_for_the_whole_network() -> None:
    # 150 for all, 100 of them elsewhere: the layers may cost 50 of their 100.
    assert Limit("parameters", 150, "absolute").compression(SPACE) == pytest.approx(0.5)
    assert Limit("macs", 6500, "absolute").compression(SPACE) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ranks", "gap"),
    [((None, None), -0.5), ((1, None), -0.1), ((1, 2), 0.0), ((1, 1), 0.15), ((2, 2), -0.2)],
)
def test_the_gap_of_one_limit(ranks: tuple, gap: float) -> None:
    budget = Budget.of([Limit("parameters", 0.5, "ratio")], SPACE)
    assert budget.gap(SPACE, ranks) == pytest.approx(gap)


def test_the_gap_of_several_limits_is_that_of_the_one_furthest_from_being_met() -> None:
    budget = Budget.of([Limit("parameters", 0.3, "ratio"), Limit("macs", 0.5, "ratio")], SPACE)
    # (1, None): parameters 0.40 is overshot by 0.10, macs 400 / 7000 misses 0.5.
    assert budget.gap(SPACE, (1, None)) == pytest.approx(400 / 7000 - 0.5)
    # (2, 1): parameters 0.45 by 0.15, macs 4200 / 7000 by 0.1.
    assert budget.gap(SPACE, (2, 1)) == pytest.approx(0.1)


def test_the_gap_after_a_change_is_the_childs_gap() -> None:
    budget = Budget.of([Limit("parameters", 0.3, "ratio"), Limit("macs", 0.5, "ratio")], SPACE)
    for parent in ((None, None), (2, 1), (1, None)):
        after = budget.gap_after(SPACE, parent)
        for rank in (1, 2, None):
            assert after(0, rank) == pytest.approx(budget.gap(SPACE, (rank, parent[1])))
            assert after(1, rank) == pytest.approx(budget.gap(SPACE, (parent[0], rank)))


def test_the_closest_ratio_can_be_asked_for() -> None:
    budget = Budget.of([Limit("parameters", 0.65, "ratio")], SPACE)
    assert budget.gap(SPACE, SPACE.smallest) == pytest.approx(0.0)


class TestInfeasible:
    """What cannot be met says what could be."""

    def test_a_ratio_beyond_rank_one(self) -> None:
        with pytest.raises(InfeasibleBudgetError, match=r"search\.budget\.parameters: .*0\.7.*0\.6500") as caught:
            Budget.of([Limit("parameters", 0.7, "ratio")], SPACE)
        assert caught.value.closest == {"parameters": pytest.approx(0.65)}
        assert isinstance(caught.value, ConfigError)

    def test_an_absolute_limit_below_rank_one(self) -> None:
        with pytest.raises(InfeasibleBudgetError, match="closest that can be reached is 135 parameters") as caught:
            Budget.of([Limit("parameters", 134, "absolute")], SPACE)
        assert caught.value.closest == {"parameters": pytest.approx(0.65)}

    def test_less_than_what_lies_elsewhere(self) -> None:
        with pytest.raises(InfeasibleBudgetError):
            Budget.of([Limit("parameters", 90, "absolute")], SPACE)

    def test_any_one_of_several(self) -> None:
        with pytest.raises(InfeasibleBudgetError, match=r"budget\.macs"):
            Budget.of([Limit("parameters", 0.5, "ratio"), Limit("macs", 0.9, "ratio")], SPACE)

    @pytest.mark.parametrize("value", [200, 201, 1e6])
    def test_what_the_dense_network_meets_already(self, value: float) -> None:
        with pytest.raises(InfeasibleBudgetError, match="dense network already costs 200 parameters"):
            Budget.of([Limit("parameters", value, "absolute")], SPACE)

    def test_the_error_survives_another_process(self) -> None:
        with pytest.raises(InfeasibleBudgetError) as caught:
            Budget.of([Limit("parameters", 0.7, "ratio")], SPACE)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.closest) == (str(caught.value), caught.value.closest)
