"""The static costs: equal to counting on the assembled network, to the published numbers, and to eq. 3.1."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
import torchvision.models
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import workers.models
from search_spaces.assembly import replace_layers
from search_spaces.costs import COST_NAMES, ShapeCost, rank_space
from search_spaces.rank_space import RankSpace
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.registry import schemes
from search_spaces.survey import Survey, survey

CHANNEL = schemes().get("channel_svd", "search.scheme")
SPATIAL = schemes().get("spatial_svd", "search.scheme")
each_scheme = pytest.mark.parametrize("scheme", [CHANNEL, SPATIAL], ids=lambda scheme: scheme.name)


def _surveyed(build: Callable[[], nn.Module], *size: int) -> tuple[nn.Module, Survey]:
    """A network on the meta device (shapes without numbers) and its survey for one input of `size`."""
    with torch.device("meta"):
        model = build().eval()
        sample = torch.empty(1, *size)
    return model, survey(model, lambda network: network(sample))


def _counted(model: nn.Module, *size: int) -> dict[str, int]:
    """Parameters, MACs and activation volume of a network's convolutions and linear layers, by running it."""
    totals = dict.fromkeys(COST_NAMES, 0)
    counted: set[nn.Module] = set()

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        totals["macs"] += output.numel() * module.weight[0].numel()
        totals["volume"] += output.numel()
        if module not in counted:
            totals["parameters"] += module.weight.numel()
        counted.add(module)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.empty(1, *size, device=next(model.parameters()).device))
    return totals


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@each_scheme
@given(data=st.data())
def test_costs_are_what_counting_gives(scheme: Scheme, data: st.DataObject, convolutions: st.SearchStrategy) -> None:
    convolution, inputs = data.draw(convolutions)
    size = inputs.shape[1:]
    model = nn.Sequential(convolution)
    (layer,) = survey(model, lambda network: network(inputs[:1])).layers
    costs = {name: ShapeCost(name, [layer], [scheme]) for name in COST_NAMES}
    assert {name: cost.of(0, None) for name, cost in costs.items()} == _counted(model, *size)
    rank = data.draw(st.integers(1, len(scheme.ranks(layer))))
    replace_layers(model, [layer], [scheme], (rank,))
    assert {name: cost.of(0, rank) for name, cost in costs.items()} == _counted(model, *size)


@each_scheme
def test_costs_of_a_whole_network_are_what_counting_gives(scheme: Scheme) -> None:
    model, found = _surveyed(torchvision.models.mobilenet_v2, 3, 64, 64)
    space = rank_space(found, [scheme] * len(found.layers))
    ranks = space.at([3] * len(found.layers))
    assert {name: space.network_cost(name, space.dense) for name in COST_NAMES} == _counted(model, 3, 64, 64)
    replace_layers(model, found.layers, [scheme] * len(found.layers), ranks)
    assert {name: space.network_cost(name, ranks) for name in COST_NAMES} == _counted(model, 3, 64, 64)


class TestPublishedNumbers:
    """Multiply-accumulates in convolutions and linear layers."""

    @pytest.mark.parametrize(
        ("name", "macs"),
        [("resnet18", 1_814_073_344), ("mobilenet_v2", 300_774_272), ("resnet50", 4_089_184_256)],
    )
    def test_imagenet_networks(self, name: str, macs: int) -> None:
        _, found = _surveyed(getattr(torchvision.models, name), 3, 224, 224)
        space = rank_space(found, [CHANNEL] * len(found.layers))
        assert space.network_cost("macs", space.dense) == macs

    @pytest.mark.parametrize(
        ("depth", "macs", "parameters"),
        [(20, 40_551_040, 268_336), (32, 68_862_592, 461_872), (56, 125_485_696, 848_944)],
    )
    def test_cifar_networks(self, depth: int, macs: int, parameters: int) -> None:
        _, found = _surveyed(getattr(workers.models, f"cifar_resnet{depth}"), 3, 32, 32)
        space = rank_space(found, [CHANNEL] * len(found.layers))
        assert space.network_cost("macs", space.dense) == macs
        assert space.network_cost("parameters", space.dense) == parameters


def _small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.Flatten(), nn.Linear(108, 5)
    )


def _small_space(*binding: str) -> RankSpace:
    _, found = _surveyed(_small_network, 3, 8, 8)
    return rank_space(found, [CHANNEL] * 3, binding=binding or ("parameters",))


class TestRankSpace:
    """The space of a surveyed model."""

    @given(ranks=st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(1, 5)))
    def test_compression_is_eq_3_1(self, ranks: tuple[int, ...]) -> None:
        matrices = [(8, 27), (12, 72), (5, 108)]
        cost = sum(min(m * n, rank * (m + n)) for (m, n), rank in zip(matrices, ranks, strict=True))
        expected = 1 - cost / sum(m * n for m, n in matrices)
        space = _SMALL_SPACE
        assert space.compression("parameters", space.at(ranks)) == pytest.approx(expected, abs=1e-12)

    def test_the_largest_useful_rank_is_the_last_below_break_even(self) -> None:
        # mn / (m + n): 216 / 35 = 6.17, 864 / 84 = 10.29, 540 / 113 = 4.78.
        assert [(one.name, one.full, one.useful) for one in _SMALL_SPACE.layers] == [
            ("0", 8, 6),
            ("2", 12, 10),
            ("4", 5, 4),
        ]

    def test_at_break_even_a_rank_is_of_no_use(self) -> None:
        # 4 x 4: rank 2 costs 16, exactly the dense layer.
        _, found = _surveyed(lambda: nn.Sequential(nn.Linear(4, 4)), 4)
        assert rank_space(found, [CHANNEL]).layers[0].useful == 1

    def test_a_layer_that_no_rank_shrinks(self) -> None:
        _, found = _surveyed(lambda: nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 1)), 9)
        space = rank_space(found, [CHANNEL] * 2)
        assert [layer.useful for layer in space.layers] == [2, 0]
        assert space.smallest == (1, None)

    def test_a_useful_rank_lowers_every_binding_cost(self) -> None:
        # Spatial SVD of a strided 3 x 3 computes its first stage on 4 x 8 positions, and the dense layer on 4 x 4:
        # 8 -> 8 channels: 24 r + 24 r < 576 up to r = 11, but 24 r 32 + 24 r 16 < 576 * 16 only up to r = 7.
        _, found = _surveyed(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1)), 8, 8, 8)
        assert rank_space(found, [SPATIAL]).layers[0].useful == 11
        assert rank_space(found, [SPATIAL], binding=("parameters", "macs")).layers[0].useful == 7

    def test_a_cost_that_is_measured_rules_out_no_rank(self) -> None:
        assert [layer.useful for layer in _small_space("latency_ms").layers] == [8, 12, 5]

    def test_excluded_layers_cost_but_do_not_compress(self) -> None:
        model = _small_network().eval()
        sample = torch.zeros(1, 3, 8, 8)
        found = survey(model, lambda network: network(sample), exclude=["0"])
        space = rank_space(found, [CHANNEL] * 2)
        assert space.network_cost("parameters", space.dense) == 216 + 864 + 540
        assert space.dense_cost["parameters"] == 864 + 540

    def test_a_space_crosses_a_process_boundary(self) -> None:
        again = pickle.loads(pickle.dumps(_SMALL_SPACE))
        assert again == _SMALL_SPACE
        assert again.cost("macs", (1, 2, None)) == _SMALL_SPACE.cost("macs", (1, 2, None))


_SMALL_SPACE = _small_space()
