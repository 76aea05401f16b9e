"""HALOC, LeSS and transfer masks: resumed exactly, plain networks in the end, better than where they began."""

import io

import pytest
import torch
from torch import nn

from search_spaces.errors import ConfigError, TrialDivergedError
from workers.new_classes import with_classes
from workers.training.samples import Samples

from .digit_setups import digit_setup, small_cnn
from .selecting_methods import SCHEMES, few, start


def stored(state):
    """Through a file, as a checkpoint goes: nothing in it needs unpickling."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("method", SCHEMES)
@pytest.mark.parametrize("interrupted_after", [1, 3])
def test_a_resumed_method_ends_as_an_undisturbed_one(method, interrupted_after):
    longer = {"selection_epochs": 2, "epochs": 2}
    undisturbed = start(method, {"parameters": 0.6}, **longer)
    first = start(method, {"parameters": 0.6}, **longer)
    for _ in range(interrupted_after):
        first.step()
    second = start(method, {"parameters": 0.6}, **longer)
    second.restore(stored(first.state()))
    while not second.done:
        last = second.step()
    while not undisturbed.done:
        expected = undisturbed.step()
    assert (last.epoch, last.loss, last.accuracy, last.accuracy_before) == (
        expected.epoch,
        expected.loss,
        expected.accuracy,
        expected.accuracy_before,
    )
    assert last.compression == expected.compression
    one, other = second.finish(), undisturbed.finish()
    assert one.ranks == other.ranks
    for name, tensor in other.network.state_dict().items():
        assert torch.equal(one.network.state_dict()[name], tensor)


@pytest.mark.parametrize("method", SCHEMES)
def test_the_result_is_a_plain_network_and_the_dense_one_is_left_alone(method):
    setup = digit_setup({"parameters": 0.6}, SCHEMES[method])
    before = {name: tensor.clone() for name, tensor in setup.network.state_dict().items()}
    trainable = start(method, {}, digit_setup({"parameters": 0.6}, SCHEMES[method], **few(setup)))
    while not trainable.done:
        metrics = trainable.step()
    result = trainable.finish()
    plain = (nn.Sequential, nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten)
    assert all(type(module) in plain for module in result.network.modules())
    assert not result.network.training
    assert metrics.compression["parameters"] >= 0.6
    for name, tensor in setup.network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("method", "rate"), [("haloc", 0.01), ("less", 0.03), ("transfer_masks", 0.01)])
def test_training_helps(method, rate):
    setup = digit_setup({"parameters": 0.7}, SCHEMES[method])
    longer = {"selection_epochs": 3, "selection_learning_rate": rate, "epochs": 3, "learning_rate": 0.03}
    trainable = start(method, {}, setup, **longer)
    while not trainable.done:
        metrics = trainable.step()
    assert metrics.accuracy >= 0.8
    assert metrics.accuracy >= metrics.accuracy_before


@pytest.mark.parametrize("method", SCHEMES)
def test_another_scheme_is_refused(method):
    with pytest.raises(ConfigError, match=f"factorises by {SCHEMES[method]}"):
        start(method, {}, digit_setup({"parameters": 0.5}, "spatial_svd"))


@pytest.mark.parametrize("method", ["haloc", "transfer_masks"])  # LeSS' masks and thresholds saturate
def test_a_diverging_selection_is_named(method):
    trainable = start(method, {"parameters": 0.5}, selection_learning_rate=1e30, selection_epochs=2)
    with pytest.raises(TrialDivergedError, match=method):
        all(trainable.step() for _ in range(2))


def test_less_learns_filters_alone_or_ranks_alone():
    filters = start("less", {"parameters": 0.4}, learn="filters", epochs=0)
    filters.step()
    ranks = start("less", {"parameters": 0.4}, learn="ranks", epochs=0)
    ranks.step()
    assert ranks.finish().structure["filters"] == {}
    assert any(one is not None for one in ranks.finish().ranks)
    assert filters.finish().structure["filters"]


def test_transfer_moves_to_a_data_set_with_other_classes():
    setup = digit_setup({"parameters": 0.5})
    moved = with_classes(setup.network, 3)
    digits = setup.train.batch(torch.arange(len(setup.train)))
    three = digits.labels < 3
    of_three = Samples(digits.inputs[three], digits.labels[three], setup.train.normalisation)
    train, held_out = of_three.split([0.8, 0.2], seed=0)
    samples = {"train": train, "held_out": held_out}
    trainable = start(
        "transfer_masks",
        {},
        digit_setup({"parameters": 0.5}, network=moved, **samples),
        selection_epochs=4,
        selection_learning_rate=0.01,
        epochs=3,
        batch_size=16,
    )
    while not trainable.done:
        metrics = trainable.step()
    assert metrics.accuracy >= 0.9
    assert trainable.finish().network(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


def test_a_new_head_is_the_same_for_a_seed_and_leaves_the_rest():
    network = small_cnn()
    one, same, other = (with_classes(network, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(one[11].weight, same[11].weight)
    assert not torch.equal(one[11].weight, other[11].weight)
    assert torch.equal(one[0].weight, network[0].weight)
    assert network[11].out_features == 10


def test_a_network_without_a_linear_layer_gets_no_new_head():
    with pytest.raises(ConfigError, match="no linear layer"):
        with_classes(nn.Sequential(nn.Conv2d(1, 2, 3)), 4)


def test_transfer_with_distillation_is_refused():
    with pytest.raises(ConfigError, match="distillation"):
        start("transfer_masks", {"parameters": 0.5}, distillation=0.5)


def test_labels_that_the_network_has_no_output_for_are_refused():
    setup = digit_setup({"parameters": 0.5}, network=with_classes(small_cnn(), 3))
    with pytest.raises(ConfigError, match="label"):
        start("transfer_masks", {}, setup)
