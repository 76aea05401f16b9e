"""The contract of trainables, held to every method: budgets, exact resumption, mistakes."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.errors import ConfigError, InfeasibleBudgetError, TrialDivergedError
from search_spaces.fitting import WINDOW, used_share
from search_spaces.rank_space import RankVector
from search_spaces.survey import survey
from tests.workers.training.digit_setups import QUICK, digit_setup, small_cnn
from workers.training.contract import Setup, Trainable
from workers.training.registry import trainables
from workers.training.samples import Samples

RANKS: RankVector = (4, 9, 9, 5)


def quick(method: str, epochs: int = 2, **changes: Any) -> dict[str, Any]:
    """Settings of so many epochs a phase; `changes` are of the first phase."""
    tuning = {"epochs": epochs, **QUICK}
    first = {
        "bsr": {"epochs": epochs, "strength": 0.3},
        "ca": {"epochs": epochs},
        "lc": {"steps": epochs, "learning_rate": 0.05},
        "fine_tuning": None,
    }[method]
    if first is None:
        return {**tuning, **changes}
    return {"training": {**QUICK, **first, **changes}, "fine_tuning": tuning}


def started(method: str, setup: Setup, **settings: Any) -> Trainable:
    found = trainables().get(method, "sweep.methods")
    return found.start(found.settings(**settings), setup)


def run(trainable: Trainable) -> nn.Module:
    while not trainable.done:
        trainable.step()
    return trainable.finish().network


METHODS = ["bsr", "ca", "fine_tuning", "lc"]
every_method = pytest.mark.parametrize("method", METHODS)


def test_they_are_registered() -> None:
    assert set(METHODS) <= set(trainables().names())
    with pytest.raises(ConfigError, match=r"^sweep\.methods: unknown training method 'bsrr'; did you mean 'bsr'\?"):
        trainables().get("bsrr", "sweep.methods")


@every_method
def test_twenty_random_budgets_are_met_and_used_up(method: str) -> None:
    draw = random.Random(3)
    for _ in range(20):
        cost, target = draw.choice(["parameters", "macs"]), draw.uniform(0.25, 0.85)
        setup = digit_setup({cost: target}, ranks=RANKS)
        compressed = started(method, setup, **quick(method, epochs=0)).finish()
        share = used_share(setup.space, setup.budget, compressed.ranks)
        assert 1 - WINDOW <= share <= 1, (cost, target, compressed.ranks)
        found = survey(compressed.network, lambda model: model(torch.zeros(1, 1, 8, 8)))
        assert not found.left_out
        counted = sum(
            layer.parameters((layer.dense,)) if cost == "parameters" else layer.macs((layer.dense,))
            for layer in found.layers
        )
        assert counted <= (1 - target) * setup.space.dense_cost[cost]


@every_method
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_going_on_from_any_epoch_gives_the_same_network(method: str, epochs: int) -> None:
    setup = digit_setup({"parameters": 0.6}, ranks=RANKS)
    whole, interrupted = (started(method, setup, **quick(method)) for _ in range(2))
    expected = [whole.step() for _ in range(whole.epochs)]
    for _ in range(min(epochs, whole.epochs - 1)):
        interrupted.step()
    file = io.BytesIO()
    torch.save(interrupted.state(), file)
    file.seek(0)
    resumed = started(method, setup, **quick(method))
    resumed.restore(torch.load(file, weights_only=True))
    rest = []
    while not resumed.done:
        rest.append(resumed.step())
    for one, other in zip(rest, expected[-len(rest) :], strict=True):
        assert (one.epoch, one.phase, one.loss, one.accuracy) == (other.epoch, other.phase, other.loss, other.accuracy)
        assert (one.accuracy_before, one.compression, one.more) == (
            other.accuracy_before,
            other.compression,
            other.more,
        )
    ends = [trainable.finish() for trainable in (resumed, whole)]
    assert ends[0].ranks == ends[1].ranks
    for name, tensor in ends[0].network.state_dict().items():
        assert torch.equal(tensor, ends[1].network.state_dict()[name]), name


@every_method
def test_a_run_from_beginning_to_end(method: str) -> None:
    setup = digit_setup({"parameters": 0.6}, ranks=RANKS)
    before = copy.deepcopy(setup.network.state_dict())
    trainable = started(method, setup, **quick(method))
    metrics = [trainable.step() for _ in range(trainable.epochs)]
    assert [one.epoch for one in metrics] == list(range(1, len(metrics) + 1))
    assert {one.phase for one in metrics} <= {method, "fine_tuning"}
    assert [one.accuracy_before is None for one in metrics] == [one.phase != "fine_tuning" for one in metrics]
    assert metrics[-1].accuracy > 0.6
    assert metrics[-1].accuracy > (metrics[-1].accuracy_before or 0)
    assert metrics[-1].compression["parameters"] == pytest.approx(0.6, abs=0.005)
    assert all(one.seconds > 0 and one.learning_rate >= 0 for one in metrics)
    with pytest.raises(RuntimeError, match=f"{method} is done after {trainable.epochs} epochs"):
        trainable.step()
    compressed = trainable.finish()
    assert not any(module.training for module in compressed.network.modules())
    # The dense network is as it was, and nobody shares its tensors.
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.network.state_dict().items())
    memory = {tensor.data_ptr() for tensor in setup.network.state_dict().values() if tensor.numel()}
    assert not memory & {tensor.data_ptr() for tensor in compressed.network.state_dict().values() if tensor.numel()}


@every_method
def test_another_seed_trains_another_network(method: str) -> None:
    networks = [
        run(started(method, digit_setup({"parameters": 0.6}, ranks=RANKS, seed=seed), **quick(method, 1)))
        for seed in (0, 0, 1)
    ]
    first, same, other = (torch.cat([one.detach().flatten() for one in net.parameters()]) for net in networks)
    assert torch.equal(first, same)
    assert first.shape != other.shape or not torch.equal(first, other)


@every_method
def test_a_learning_rate_that_diverges_is_named(method: str) -> None:
    setup = digit_setup({"parameters": 0.6}, ranks=RANKS, network=unnormalised())
    wild = {"learning_rate": 1e30, **({"mu_end": 1e-3} if method == "lc" else {})}
    trainable = started(method, setup, **quick(method, **wild))
    with pytest.raises(TrialDivergedError, match=f"^{method}: the training loss became NaN") as raised:
        run(trainable)
    assert raised.value.learning_rate > 1


@every_method
def test_another_number_of_classes(method: str) -> None:
    samples = digit_setup().train
    hundred = Samples(samples.inputs, samples.labels * 11, chosen=samples.chosen)
    with pytest.raises(ConfigError, match=r"^data\.train: labels run from 0 to 99, but the model has 10 classes"):
        started(method, digit_setup(ranks=RANKS, train=hundred))


@every_method
def test_samples_of_another_size(method: str) -> None:
    wide = Samples(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"^data\.train: the model does not take the samples: .*channels"):
        started(method, digit_setup(ranks=RANKS, train=wide))
    with pytest.raises(ConfigError, match=r"^data\.train: no samples"):
        started(method, digit_setup(ranks=RANKS, train=digit_setup().train.part(torch.zeros(0, dtype=torch.long))))


@every_method
def test_a_budget_out_of_reach(method: str) -> None:
    with pytest.raises(InfeasibleBudgetError, match="no rank vector meets all its limits"):
        started(method, digit_setup({"parameters": 0.99}, ranks=RANKS), **quick(method, 0)).finish()


@every_method
def test_settings_that_are_none(method: str) -> None:
    settings = trainables().get(method, "sweep.methods").settings
    with pytest.raises(ValueError, match="extra_forbidden"):
        settings(epoch=3)
    phase = "fine_tuning" if method != "fine_tuning" else None
    wrong = {"learning_rate": -1.0}
    with pytest.raises(ValueError, match="greater than 0"):
        settings(**({phase: wrong} if phase else wrong))


@pytest.mark.parametrize("method", ["bsr", "fine_tuning"])
def test_ranks_from_a_search_are_needed(method: str) -> None:
    assert trainables().get(method, "sweep.methods").needs_ranks
    with pytest.raises(ConfigError, match=rf"^sweep\.ranks: {method} needs a rank vector from a search"):
        started(method, digit_setup())


@pytest.mark.parametrize("method", ["bsr", "fine_tuning"])
def test_ranks_that_use_up_the_budget_stay_as_the_search_found_them(method: str) -> None:
    space = digit_setup().space
    ranks = (4, 9, 9, 5)
    setup = digit_setup({"parameters": space.compression("parameters", ranks) - 1e-3}, ranks=ranks)
    assert started(method, setup, **quick(method, 0)).finish().ranks == ranks
    # A search may end a tolerance over its budget: then the least is changed.
    over = digit_setup({"parameters": space.compression("parameters", ranks) + 1e-3}, ranks=ranks)
    fitted = started(method, over, **quick(method, 0)).finish().ranks
    assert fitted != ranks
    assert sum(one != other for one, other in zip(fitted, ranks, strict=True)) <= 2


@pytest.mark.parametrize("scheme", ["spatial_svd", "tucker2", "sliced_svd"])
@every_method
def test_other_schemes(method: str, scheme: str) -> None:
    setup = digit_setup({"parameters": 0.5}, scheme=scheme)
    ranks = setup.space.at([max(1, layer.useful // 2) for layer in setup.space.layers])
    setup = digit_setup({"parameters": 0.5}, scheme=scheme, ranks=ranks)
    if method in ("bsr", "ca") and scheme != "spatial_svd":
        with pytest.raises(ConfigError, match=rf"^search\.scheme: {method} trains singular values of one matrix"):
            started(method, setup)
        return
    compressed = started(method, setup, **quick(method, 0)).finish()
    assert 1 - WINDOW <= used_share(setup.space, setup.budget, compressed.ranks) <= 1


def test_activation_norm_starts_higher() -> None:
    setup = digit_setup({"parameters": 0.8}, ranks=(2, 4, 4, 3))
    before = []
    for norm in ("weight", "activation"):
        trainable = started("fine_tuning", setup, **quick("fine_tuning", 1), norm=norm)
        before.append(trainable.step().accuracy_before)
    assert before[1] > before[0]


def unnormalised() -> nn.Module:
    """Without batch norms, which would take any learning rate."""
    torch.manual_seed(0)
    return nn.Sequential(*(module for module in small_cnn() if not isinstance(module, nn.BatchNorm2d))).eval()
