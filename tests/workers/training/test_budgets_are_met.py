"""Whatever the budget, a result costs at most that, and not much less; or the method says that it cannot."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.budgets import Budget
from search_spaces.costs import rank_space
from search_spaces.errors import ConfigError, InfeasibleBudgetError
from search_spaces.schemes.registry import schemes
from search_spaces.survey import survey
from workers.models import CifarResNet
from workers.training.contract import Setup
from workers.training.samples import Samples

from .digit_setups import digit_setup, small_cnn
from .selecting_methods import SCHEMES, costs, few, start, trained

DENSE = costs(small_cnn())


def check(network, budget):
    left = costs(network)
    shares = [left[cost] / DENSE[cost] / (1 - target) for cost, target in budget.items()]
    assert max(shares) <= 1
    assert max(shares) >= 0.99


@pytest.mark.parametrize("method", SCHEMES)
@given(cost=st.sampled_from(["parameters", "macs"]), target=st.floats(0.05, 0.9))
@settings(max_examples=7, deadline=None)
def test_the_result_is_within_one_percent_below_a_random_budget(method, cost, target):
    try:
        result = trained(method, {cost: target}, epochs=0)
    except InfeasibleBudgetError:
        assert target > 0.8  # what tiny layers cannot do
        return
    check(result.network, {cost: target})


@pytest.mark.parametrize("method", SCHEMES)
def test_two_limits_hold_at_once(method):
    budget = {"parameters": 0.4, "macs": 0.5}
    check(trained(method, budget, epochs=0).network, budget)


@pytest.mark.parametrize("method", ["less", "transfer_masks"])
def test_volume_is_saved_by_filters_alone(method):
    result = trained(method, {"volume": 0.3}, epochs=0)
    check(result.network, {"volume": 0.3})
    assert set(result.ranks) == {None}


@dataclasses.dataclass(frozen=True)
class Staircase:
    """A latency that jumps every 4 ranks, rises a little between, and knows every second rank only."""

    name: str = "latency@board"
    elsewhere: float = 0.0

    def of(self, layer, rank):
        if rank is None:
            return 3.0 + layer
        if rank % 2:
            raise KeyError(rank)
        return min(0.5 + (0.25 * ((rank + 3) // 4) + 0.013 * rank) * (1 + layer / 4), 2.9 + layer)


def measured(method, target):
    """A set-up whose budget is a measured latency."""
    setup = digit_setup({"parameters": 0.5}, SCHEMES[method])
    cost = Staircase()
    layers = tuple(
        dataclasses.replace(one, ladder=tuple(range(2, one.useful + 1, 2)), useful=one.useful // 2)
        for one in setup.space.layers
    )
    space = dataclasses.replace(setup.space, layers=layers, costs={**setup.space.costs, cost.name: cost})
    return dataclasses.replace(setup, space=space, budget=Budget(((cost.name, target),)), **few(setup))


def run(trainable):
    while not trainable.done:
        trainable.step()
    return trainable.finish()


@pytest.mark.parametrize("method", SCHEMES)
def test_a_latency_budget_is_met_by_measured_ranks_alone(method):
    setup = measured(method, 0.5)
    trainable = start(method, {}, setup, epochs=0)
    while not trainable.done:
        assert trainable.step().phase == method
    result = trainable.finish()
    share = setup.space.cost("latency@board", result.ranks) / setup.space.dense_cost["latency@board"]
    allowed = 1 - setup.budget.targets[0][1]
    assert 0.99 * allowed <= share <= allowed
    assert not result.structure.get("filters")


@pytest.mark.parametrize("method", SCHEMES)
def test_a_device_that_offers_few_ranks_is_met_as_closely_as_it_can_be(method):
    setup = measured(method, 0.5)
    layers = tuple(dataclasses.replace(one, ladder=one.ladder[:1], useful=1) for one in setup.space.layers)
    setup = dataclasses.replace(setup, space=dataclasses.replace(setup.space, layers=layers))
    result = run(start(method, {}, setup, epochs=0))
    assert setup.budget.gap(setup.space, result.ranks) > 0.01 * 0.5


def test_filters_alone_cannot_meet_a_latency():
    with pytest.raises(ConfigError, match=r"^sweep\.learn: filters alone cannot meet latency@board"):
        start("less", {}, measured("less", 0.5), learn="filters")


@pytest.mark.parametrize(("method", "budget"), [("less", {"volume": 0.99}), ("haloc", {"parameters": 0.999})])
def test_a_budget_out_of_reach_is_refused_before_training(method, budget):
    with pytest.raises(InfeasibleBudgetError) as caught:
        start(method, budget)
    (cost, target) = next(iter(budget.items()))
    assert caught.value.closest[cost] < target


def test_volume_is_out_of_reach_for_ranks_alone():
    with pytest.raises(InfeasibleBudgetError, match="volume"):
        start("less", {"volume": 0.2}, learn="ranks")


@pytest.mark.parametrize("method", SCHEMES)
def test_networks_with_residual_sums_meet_it_too(method):
    torch.manual_seed(0)
    images = Samples(torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8), torch.arange(32) % 10)
    network = CifarResNet(8)
    found = survey(network, lambda model: model(torch.zeros(1, 3, 16, 16)))
    chosen = (schemes().get(SCHEMES[method], "search.scheme"),) * len(found.layers)
    space = rank_space(found, chosen, binding=["macs"])
    setup = Setup(network, found.layers, chosen, space, Budget((("macs", 0.6),)), images, images)
    trainable = start(method, {}, setup, epochs=0, batch_size=16)
    while not trainable.done:
        trainable.step()
    result = trainable.finish()
    left = survey(result.network, lambda model: model(torch.zeros(1, 3, 16, 16))).layers
    share = sum(layer.macs((layer.dense,)) for layer in left) / space.dense_cost["macs"]
    assert 0.99 * 0.4 <= share <= 0.4
    assert set(result.structure.get("filters", {})) <= {f"layer{i}.0.conv1" for i in (1, 2, 3)}
