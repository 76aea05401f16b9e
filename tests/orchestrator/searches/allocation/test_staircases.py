"""Every setting of the knob, and the highest within the limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given

from orchestrator.searches.allocation.options import usable
from orchestrator.searches.allocation.staircases import Staircases
from tests.orchestrator.searches.allocation.small_spaces import cost_of, layer, problems, within


def _staircases(together=True):
    options = [layer("a", [0.5, 0.2], parameters=[2, 4, 9]), layer("b", [0.3], parameters=[1, 5])]
    rungs = [np.array([0, 1, 2]), np.array([0, 1])]
    return Staircases(options, rungs, [np.array([1.0, 2.0]), np.array([2.0])], together=together)


def test_steps_at_one_level_are_taken_together():
    stairs = _staircases()
    assert stairs.highest == 2
    assert [stairs.choice(setting) for setting in range(3)] == [[0, 0], [1, 0], [2, 1]]
    assert stairs.total("parameters").tolist() == [3, 5, 14]
    assert stairs.levels.tolist() == [1.0, 2.0]
    assert [stairs.highest_within({"parameters": most}) for most in (14, 13, 5, 3, 2)] == [2, 1, 1, 0, None]


def test_or_one_by_one():
    stairs = _staircases(together=False)
    assert [stairs.choice(setting) for setting in range(4)] == [[0, 0], [1, 0], [2, 0], [2, 1]]
    assert stairs.total("parameters").tolist() == [3, 5, 10, 14]


@given(problems())
def test_threshold_settings_cost_what_their_choices_cost(problem):
    options, capacities = problem
    layers, errors = usable(options)
    prices = [one.costs["parameters"] for one in layers]
    stairs = Staircases.of_thresholds(layers, errors, prices)
    settings = [stairs.choice(setting) for setting in range(stairs.highest + 1)]
    for cost in layers[0].costs:
        assert stairs.total(cost).tolist() == pytest.approx([cost_of(layers, one, cost) for one in settings])
    worst = [max(error[index] for error, index in zip(errors, one, strict=True)) for one in settings]
    assert all(a > b for a, b in itertools.pairwise(worst))
    assert worst[-1] == 0
    fitting = [setting for setting, one in enumerate(settings) if within(layers, one, capacities)]
    assert stairs.highest_within(capacities) == (fitting[-1] if fitting else None)
