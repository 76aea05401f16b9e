"""Specifies batch norms' statistics taken again, and batch norms that use the batch at hand."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from tests.workers.random_networks import (
    Case,
    Chain,
    Network,
    Residual,
    Shared,
    assert_outputs,
    assert_right,
    make_case,
)
from workers.batch import accuracy
from workers.batch_norms import BatchStatistics, check_batch_statistics, normalise_by_batch, reestimate
from workers.resuming_scorer import ResumingScorer
from workers.scorer import PlainScorer


def network() -> nn.Sequential:
    """Two norms, the second of which sees what the first one makes of its inputs; dropout must not act."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.9),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5, momentum=0.3),
    )


def batches(count: int = 4, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 6, generator=generator) * 2 + 1 for _ in range(count)]


class TestReestimate:
    def test_statistics_are_the_averages_over_batches(self) -> None:
        model = network().double()
        first, second = model[1], model[6]
        inputs = [batch.double() for batch in batches()]
        expected: list[list[Tensor]] = [[], [], [], []]
        with torch.no_grad():
            for batch in inputs:
                x = model[0](batch)
                expected[0].append(x.mean((0, 2, 3)))
                expected[1].append(x.transpose(0, 1).flatten(1).var(1, unbiased=True))
                x = F.batch_norm(x, None, None, first.weight, first.bias, training=True, eps=first.eps)
                x = model[5](torch.relu(x).flatten(1))
                expected[2].append(x.mean(0))
                expected[3].append(x.var(0, unbiased=True))
        reestimate(model, iter(inputs))
        found = [first.running_mean, first.running_var, second.running_mean, second.running_var]
        for one, all_batches in zip(found, expected, strict=True):
            torch.testing.assert_close(one, torch.stack(all_batches).mean(0))

    def test_the_former_statistics_and_the_order_do_not_matter(self) -> None:
        one, other = network().double(), network().double()
        with torch.no_grad():
            other[1].running_mean.normal_()
            other[6].running_var.fill_(float("nan"))
            other[6].num_batches_tracked.fill_(1000)
        reestimate(one, [batch.double() for batch in batches()])
        reestimate(other, [batch.double() for batch in batches()[::-1]])
        reestimate(other, [batch.double() for batch in batches()[::-1]])
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)

    def test_nothing_else_changes(self) -> None:
        model = network().train()
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        assert reestimate(model, batches()) is None
        assert not any(module.training for module in model.modules())
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        assert (model[1].momentum, model[6].momentum) == (0.1, 0.3)
        assert not any(module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize(
        ("norm", "shape"),
        [
            (nn.BatchNorm1d(3), (5, 3)),
            (nn.BatchNorm1d(3, affine=False), (5, 3, 4)),
            (nn.BatchNorm2d(3, momentum=None), (5, 3, 2, 2)),
            (nn.BatchNorm3d(3), (5, 3, 2, 2, 2)),
            (nn.SyncBatchNorm(3), (5, 3, 2, 2)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_every_kind_of_batch_norm(self, norm: nn.Module, shape: tuple[int, ...]) -> None:
        inputs = torch.randn(shape) * 3 + 2
        reestimate(norm, [inputs])
        torch.testing.assert_close(norm.running_mean, inputs.transpose(0, 1).flatten(1).mean(1))
        torch.testing.assert_close(norm.running_var, inputs.transpose(0, 1).flatten(1).var(1))

    def test_norms_without_statistics_and_networks_without_norms_stay(self) -> None:
        class Refuses:
            def __iter__(self) -> object:
                raise AssertionError("read")

        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)).train()
        reestimate(model, Refuses())  # type: ignore[arg-type]
        assert not model.training

    def test_inputs_by_name(self) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(3)

            def forward(self, values: Tensor, shift: Tensor) -> Tensor:
                return self.norm(input=values + shift)

        model, values, shift = Named(), torch.randn(5, 3), torch.randn(5, 1)
        reestimate(model, [{"values": values, "shift": shift}])
        torch.testing.assert_close(model.norm.running_mean, (values + shift).mean(0))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], r"data\.calibration_size: no inputs"),
            ([*batches(1), torch.randn(1, 3, 6, 6)], r"data\.calibration_size: a batch of 1 leaves batch norm 6 one"),
            ([*batches(1), torch.full((2, 3, 6, 6), float("nan"))], "model: the inputs of batch norm 1 are NaN"),
        ],
        ids=["none", "one sample", "nan"],
    )
    def test_mistakes_leave_the_statistics(self, given: list[Tensor], message: str) -> None:
        model = network()
        reestimate(model, batches(2))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ConfigError, match=message):
            reestimate(model, given)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any(module.training or module._forward_pre_hooks for module in model.modules())
        assert model[6].momentum == 0.3


class TestNormaliseByBatch:
    def test_outputs_are_those_of_training_mode(self) -> None:
        model = network()
        model[3].p = 0.0
        expected = copy.deepcopy(model).train()(batches(1)[0])
        assert normalise_by_batch(model.eval()) == 2
        torch.testing.assert_close(model(batches(1)[0]), expected)
        assert not any(module.training for module in model.modules())

    def test_it_is_what_reestimating_on_the_batch_gives_up_to_the_variance(self) -> None:
        model, (inputs,) = network().double(), [batch.double() for batch in batches(1, 500)]
        reestimated = copy.deepcopy(model)
        reestimate(reestimated, [inputs])
        normalise_by_batch(model.eval())
        # The running variance is unbiased: a factor of 500 / 499.
        torch.testing.assert_close(model(inputs), reestimated(inputs), rtol=2e-3, atol=2e-3)

    def test_parameters_are_shared_and_never_written(self) -> None:
        model = network().eval().requires_grad_(False)
        weight, bias = model[1].weight, model[1].bias
        normalise_by_batch(model)
        assert isinstance(model[1], BatchStatistics)
        assert model[1].weight is weight
        assert model[1].bias is bias
        versions = [parameter._version for parameter in model.parameters()]
        model(batches(1)[0])
        assert [parameter._version for parameter in model.parameters()] == versions
        assert not list(model.buffers())

    def test_a_shared_norm_stays_one_module(self) -> None:
        model = nn.ModuleDict({"one": nn.BatchNorm2d(3)})
        model["other"] = model["one"]
        model["plain"] = nn.BatchNorm2d(3, affine=False)
        assert normalise_by_batch(model) == 2
        assert model["one"] is model["other"]
        assert isinstance(model["plain"], BatchStatistics)
        assert model["plain"].weight is None

    def test_norms_without_statistics_stay(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3), nn.LayerNorm(3))
        kinds = [type(module) for module in model]
        assert normalise_by_batch(model) == 0
        assert [type(module) for module in model] == kinds

    def test_a_norm_that_does_more_is_refused(self) -> None:
        class WithActivation(nn.BatchNorm2d):
            def forward(self, input: Tensor) -> Tensor:
                return torch.relu(super().forward(input))

        with pytest.raises(ConfigError, match="batch norm 0 cannot be replaced: WithActivation has its own forward"):
            normalise_by_batch(nn.Sequential(WithActivation(3)))
        hooked = nn.Sequential(nn.BatchNorm2d(3))
        hooked[0].register_forward_hook(lambda *_: None)
        with pytest.raises(ConfigError, match="it has forward hooks"):
            normalise_by_batch(hooked)
        with pytest.raises(ConfigError, match=r"wrap it in torch\.nn\.Sequential"):
            normalise_by_batch(nn.BatchNorm2d(3))


class TestCheck:
    @pytest.mark.parametrize("size", [2, 6])
    def test_batches_that_can_be_normalised(self, size: int) -> None:
        model = network().eval()
        normalise_by_batch(model)
        check_batch_statistics(model, batches(1, size)[0])
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_one_sample_of_one_position(self) -> None:
        model = network().eval()
        normalise_by_batch(model)
        with pytest.raises(ConfigError, match=r"^data\.x: a batch of 1 leaves batch norm 6 one value per channel"):
            check_batch_statistics(model, batches(1, 1)[0], "data.x")
        check_batch_statistics(nn.Sequential(*list(model)[:6]), batches(1, 1)[0])


@pytest.mark.parametrize("blocks", [(Residual, Chain), (Shared,), (Chain, Residual, Residual)])
@pytest.mark.parametrize("seed", [0, 1])
def test_resuming_scores_as_the_plain_pass_and_the_assembled_network(
    blocks: tuple[type[nn.Module], ...], seed: int
) -> None:
    torch.manual_seed(seed)
    plain = make_case(Network(blocks, random.Random(seed)), seed, samples=9)
    model = copy.deepcopy(plain.model)
    assert normalise_by_batch(model) >= 1
    case = Case(model, plain.layers, plain.schemes, plain.factors, plain.batch)
    parent = (2,) * len(case.layers)
    changes = [{index: rank} for index in range(len(case.layers)) for rank in (1, None)]
    resumed = ResumingScorer(*case.arguments, accuracy, slice_size=9)
    scores = resumed.score(parent, changes)
    expected = PlainScorer(*case.arguments, accuracy, slice_size=9).score(parent, changes)
    for one, other in zip(scores, expected, strict=True):
        assert one.ranks == other.ranks
        assert one.values == pytest.approx(other.values, rel=1e-4, abs=1e-4)
    assert_right(case, parent, changes, scores)
    assert_outputs(case, parent, changes, resumed.outputs(parent, changes))
