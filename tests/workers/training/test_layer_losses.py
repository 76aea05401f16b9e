"""How ranks from elsewhere come into a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search_spaces.rank_space import LayerRanks, RankSpace
from tests.workers.training.digit_setups import digit_setup
from workers.training.layer_losses import fitted_ranks, rungs_of


@pytest.mark.parametrize(
    ("rank", "rung"), [(None, 4), (1, 1), (8, 1), (9, 2), (16, 2), (23, 3), (24, 3), (25, 4), ((2, 4), 4)]
)
def test_a_rank_that_no_device_was_timed_at_is_the_next_one_that_takes_as_long(rank: object, rung: int) -> None:
    space = RankSpace((LayerRanks("conv", 4, 3, ladder=(8, 16, 24)),), {})
    assert rungs_of(space, [rank]) == [rung]  # type: ignore[list-item]


def test_sliced_ranks_are_only_themselves() -> None:
    space = RankSpace((LayerRanks("conv", 3, 2, ladder=((1, 4), (2, 4))),), {})
    assert rungs_of(space, [(2, 4)]) == [2]
    assert rungs_of(space, [(2, 3)]) == [3]


def test_ranks_that_stand_are_not_fitted_to_what_is_predicted() -> None:
    setup = digit_setup({"parameters": 0.5})
    dense = (None,) * len(setup.layers)
    assert fitted_ranks(setup, dense) != dense
    assert fitted_ranks(replace(setup, ranks_stand=True), dense) == dense
