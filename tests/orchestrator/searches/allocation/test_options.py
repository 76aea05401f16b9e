"""What an allocation chooses from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.searches.allocation.options import allocated, layer_options, usable
from search_spaces.error_curves import ErrorCurve
from search_spaces.rank_space import LayerRanks, RankSpace
from tests.orchestrator.searches.allocation.small_spaces import layer


class PerRankCost:
    """So much per slice and rank, 100 for the dense layer."""

    elsewhere = 7.0

    def __init__(self, name, unit):
        self.name, self.unit = name, unit

    def of(self, layer, rank):
        return 100 if rank is None else self.unit * math.prod(rank if isinstance(rank, tuple) else (rank,))


def test_only_offered_ranks_in_the_curves_order_and_the_dense_layer_last():
    space = RankSpace(
        (LayerRanks("plain", 5, 2), LayerRanks("sliced", 3, 2, ((1, 1), (2, 1), (2, 9))), LayerRanks("dense", 4, 0)),
        {"parameters": PerRankCost("parameters", 3), "macs": PerRankCost("macs", 5)},
    )
    curves = [
        ErrorCurve(range(1, 6), [0.5, 0.4, 0.3, 0.2, 0.0], [3.0, 1.0]),
        ErrorCurve([(2, 9), (2, 1), (1, 1)], [0.1, 0.6, 0.7]),
        ErrorCurve(range(1, 5), [0.4, 0.3, 0.2, 0.0]),
    ]
    plain, sliced, dense = layer_options(space, curves, [(4, 6), (4, 8), (4, 4)])
    assert plain.name == "plain"
    assert plain.ranks == (1, 2, None)
    assert plain.matrix_shape == (4, 6)
    assert plain.errors.tolist() == [0.5, 0.4, 0.0]
    assert plain.singular_values.tolist() == [3.0, 1.0]
    assert {name: cost.tolist() for name, cost in plain.costs.items()} == {
        "parameters": [3, 6, 100],
        "macs": [5, 10, 100],
    }
    assert sliced.ranks == ((2, 1), (1, 1), None)
    assert sliced.errors.tolist() == [0.6, 0.7, 0.0]
    assert sliced.costs["parameters"].tolist() == [6, 3, 100]
    assert len(sliced.singular_values) == 0
    assert dense.ranks == (None,)
    assert dense.errors.tolist() == [0.0]
    assert all(array.dtype == np.float64 for array in (plain.errors, plain.singular_values, plain.costs["macs"]))


def test_options_that_are_not_finite_are_left_out():
    one = layer("a", [math.nan, 0.5, math.inf, 0.2], parameters=[1, 2, 3, math.inf, 9])
    (kept,), (values,) = usable([one])
    assert kept.ranks == (2, None)
    assert values.tolist() == [0.5, 0.0]
    assert kept.errors.tolist() == [0.5, 0.0]
    assert kept.costs["parameters"].tolist() == [2, 9]
    (kept,), (values,) = usable([one], [np.array([1.0, math.nan, 2.0, 3.0, 4.0])])
    assert kept.ranks == (1, 3, None)
    assert values.tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("values", [[0.5, math.nan], [0.5], [[0.5, 0.0]]])
def test_values_that_do_not_match_are_refused(values):
    with pytest.raises(ValueError, match=r"^a: "):
        usable([layer("a", [0.5], parameters=[1, 2])], [np.array(values)])


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        usable([])


def test_a_choice_becomes_a_rank_vector():
    options = [layer("a", [0.5], parameters=[1, 2]), layer("b", [0.5], ranks=[(2, 3)], parameters=[1, 2])]
    assert allocated(options, [1, 0], {"why": 1}).ranks == (None, (2, 3))
