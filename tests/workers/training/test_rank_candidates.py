"""HALOC's candidates and their repair."""

import pytest
import torch

from search_spaces.errors import InfeasibleBudgetError
from search_spaces.rank_space import LayerRanks
from workers.training.rank_candidates import RankCandidates, candidates

from .digit_setups import digit_setup


def test_candidates_are_multiples_of_the_step_and_dense():
    assert candidates(LayerRanks("a", 64, 50), 16, 2) == (16, 32, 48, None)


def test_the_step_is_halved_for_a_small_layer():
    assert candidates(LayerRanks("a", 16, 13), 16, 2) == (4, 8, 12, None)
    assert candidates(LayerRanks("a", 4, 1), 16, 2) == (1, None)
    assert candidates(LayerRanks("a", 4, 0), 16, 2) == (None,)


def test_measured_ranks_are_taken_as_they_are():
    assert candidates(LayerRanks("a", 20, 3, ladder=(5, 9, 17)), 16, 2) == (5, 9, 17, None)


def certain(found, ranks):
    """Probabilities of 0.97 for these ranks."""
    chances = []
    for ladder, rank in zip(found.ladders, ranks, strict=True):
        one = torch.full((len(ladder),), 0.03 / max(1, len(ladder) - 1))
        one[ladder.index(rank)] = 0.97
        chances.append(one)
    return chances


def test_the_most_probable_candidates_are_chosen_where_they_meet_the_budget():
    setup = digit_setup({"parameters": 0.5}, "tucker2")
    found = RankCandidates(setup, 16, 2, strict=False)
    wanted = tuple(ladder[0] if index else None for index, ladder in enumerate(found.ladders))
    exact = setup.space.compression("parameters", wanted)
    met = RankCandidates(digit_setup({"parameters": exact}, "tucker2"), 16, 2, strict=False)
    assert met.choose(certain(met, wanted)) == wanted


def test_a_choice_above_the_budget_gives_up_what_is_least_probable():
    setup = digit_setup({"parameters": 0.5}, "tucker2")
    found = RankCandidates(setup, 16, 2, strict=False)
    dense = certain(found, (None,) * len(found.ladders))
    dense[2] = torch.full_like(dense[2], 1 / len(dense[2]))
    ranks = found.choose(dense)
    assert ranks[2] is not None
    assert 0.5 <= setup.space.compression("parameters", ranks) <= 0.505


def test_few_layers_leave_the_step():
    setup = digit_setup({"parameters": 0.5}, "tucker2")
    found = RankCandidates(setup, 8, 2, strict=False)
    ranks = found.choose([torch.full((len(ladder),), 1 / len(ladder)) for ladder in found.ladders])
    assert sum(rank not in ladder for rank, ladder in zip(ranks, found.ladders, strict=True)) <= 2


def test_a_strict_step_too_coarse_for_the_budget_is_refused():
    with pytest.raises(InfeasibleBudgetError, match="strict_step"):
        RankCandidates(digit_setup({"parameters": 0.2}, "tucker2"), 16, 1, strict=True)


def test_where_the_smallest_candidates_are_too_large_the_step_is_halved_unless_it_is_strict():
    setup = digit_setup({"parameters": 0.83}, "tucker2")
    with pytest.raises(InfeasibleBudgetError, match="smaller step"):
        RankCandidates(setup, 16, 2, strict=True)
    chosen = RankCandidates(setup, 16, 2, strict=False)
    assert (
        setup.space.compression("parameters", chosen.choose(certain(chosen, [one[0] for one in chosen.ladders])))
        >= 0.83
    )
