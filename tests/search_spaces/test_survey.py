"""The survey finds what may be factorised, says of the rest why not, and leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision.models
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from search_spaces.errors import ConfigError
from search_spaces.layers import Call
from search_spaces.survey import Survey, survey, without_fused_attention


def _survey(model: nn.Module, *size: int, **patterns: list[str]) -> Survey:
    sample = torch.zeros(1, *size)
    return survey(model, lambda network: network(sample), **patterns)


def _names(found: Survey) -> list[str]:
    return [layer.name for layer in found.layers]


def _reasons(found: Survey) -> dict[str, str]:
    return {one.name: one.reason for one in found.left_out}


def _small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


class TestFinds:
    """What a layer of the space is."""

    def test_convolutions_and_linear_layers_in_the_models_order(self) -> None:
        found = _survey(_small_network(), 3, 8, 8)
        assert _names(found) == ["0", "3"]
        assert [layer.linear for layer in found.layers] == [False, True]
        assert found.left_out == ()

    def test_input_sizes_of_one_sample(self) -> None:
        found = _survey(_small_network(), 3, 8, 8)
        assert [layer.calls for layer in found.layers] == [(Call(8, 8),), (Call(1, 1),)]

    def test_a_linear_layer_over_positions(self) -> None:
        found = _survey(nn.Sequential(nn.Linear(6, 4)), 5, 7, 6)
        assert found.layers[0].calls == (Call(1, 35),)

    def test_windows_folded_into_the_batch(self) -> None:
        class Windows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return self.conv(images.unflatten(-1, (4, 2)).permute(0, 3, 1, 2, 4).flatten(0, 1).repeat(1, 1, 1, 2))

        assert _survey(Windows(), 3, 8, 8).layers[0].calls == (Call(8, 4, count=4),)

    def test_a_layer_called_by_keyword(self) -> None:
        class ByKeyword(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 4)

            def forward(self, values: torch.Tensor) -> torch.Tensor:
                return self.linear(input=values)

        assert _names(_survey(ByKeyword(), 6)) == ["linear"]

    def test_a_shared_module_once_under_all_its_names(self) -> None:
        shared = nn.Linear(6, 6)
        found = _survey(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU(), shared)})["b"], 6)
        assert _names(found) == ["0"]
        assert found.layers[0].aliases == ("2",)
        assert len(found.layers[0].calls) == 2

    def test_a_shared_block_under_all_its_names(self) -> None:
        block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        (layer,) = _survey(nn.Sequential(block, block), 6).layers
        assert (layer.name, layer.aliases) == ("0.0", ("1.0",))

    def test_layers_of_a_vision_transformer(self) -> None:
        model = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4)
        found = _survey(model, 3, 16, 16)
        blocks = [f"encoder.layers.encoder_layer_{block}.mlp.{index}" for block in (0, 1) for index in (0, 3)]
        assert _names(found) == ["conv_proj", *blocks, "heads.head"]
        assert found.layers[1].calls == (Call(1, 5),)

    @pytest.mark.parametrize("batch_first", [False, True])
    def test_linear_layers_of_a_transformer_encoder(self, batch_first: bool) -> None:
        # In eval mode torch's fused path would read their weights and never call them.
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        model = nn.TransformerEncoder(block, 2, enable_nested_tensor=batch_first).eval()
        found = _survey(model, 5, 8)
        assert _names(found) == [f"layers.{block}.linear{index}" for block in (0, 1) for index in (1, 2)]
        assert all("never called" in reason for reason in _reasons(found).values())
        assert sorted(_reasons(found)) == [f"layers.{block}.self_attn.out_proj" for block in (0, 1)]


class OwnForward(nn.Conv2d):
    """Computes something else than a convolution."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) * 2


class StandardisedWeight(nn.Conv2d):
    """Computes its weight on the way, one method below forward."""

    def _conv_forward(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(inputs, weight - weight.mean(), bias)


def _hooked() -> nn.Conv2d:
    convolution = nn.Conv2d(3, 3, 3)
    convolution.register_forward_hook(lambda module, inputs, output: output * 2)
    return convolution


def _patched() -> nn.Conv2d:
    convolution = nn.Conv2d(3, 3, 3)
    convolution.forward = lambda inputs: inputs * 2  # type: ignore[method-assign]
    return convolution


def _frozen_into_a_buffer() -> nn.Conv2d:
    convolution = nn.Conv2d(3, 3, 3)
    weight = convolution.weight.detach().clone()
    del convolution.weight
    convolution.register_buffer("weight", weight)
    return convolution


class TestLeavesOut:
    """What a cascade cannot stand in for, with the reason."""

    @pytest.mark.parametrize(
        ("build", "reason"),
        [
            (lambda: nn.Conv2d(3, 3, 3, groups=3), "grouped convolution (groups = 3)"),
            (lambda: nn.ConvTranspose2d(3, 3, 3), "ConvTranspose2d: only Conv2d and Linear are factorised"),
            (lambda: parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), "computed by a parametrization"),
            (lambda: OwnForward(3, 3, 3), "OwnForward has its own forward"),
            (lambda: StandardisedWeight(3, 3, 3), "StandardisedWeight has its own _conv_forward"),
            (_hooked, "it has forward hooks"),
            (_patched, "Conv2d has its own forward"),
            (_frozen_into_a_buffer, "its weight is no parameter of its own"),
        ],
    )
    def test_for_its_kind(self, build: Callable[[], nn.Module], reason: str) -> None:
        found = _survey(nn.Sequential(nn.Conv2d(3, 3, 1), build()), 3, 8, 8)
        assert _names(found) == ["0"]
        (left_out,) = found.left_out
        assert left_out.name == "1"
        assert reason in left_out.reason

    def test_what_is_left_out_still_has_its_shape_and_uses(self) -> None:
        found = _survey(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 6, 3, groups=3)), 3, 8, 8)
        (left_out,) = found.left_out
        assert left_out.stage is not None
        assert (left_out.stage.groups, left_out.calls) == (3, (Call(8, 8),))

    def test_a_weight_tied_between_two_modules(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(10, 6)
                self.middle = nn.Linear(6, 6)
                self.head = nn.Linear(6, 10)
                self.head.weight = self.embedding.weight

            def forward(self, words: torch.Tensor) -> torch.Tensor:
                return self.head(self.middle(self.embedding(words)))

        words = torch.zeros(1, 3, dtype=torch.long)
        found = survey(Tied(), lambda network: network(words))
        assert _names(found) == ["middle"]
        assert _reasons(found) == {"head": "its weight is tied between embedding and head"}

    def test_a_layer_that_is_never_called(self) -> None:
        class Unused(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)

            def forward(self, values: torch.Tensor) -> torch.Tensor:
                return self.used(values)

        found = _survey(Unused(), 6)
        assert _names(found) == ["used"]
        assert "never called" in _reasons(found)["unused"]

    @pytest.mark.parametrize(("model", "size"), [(nn.Linear(4, 4), (4,)), (nn.Conv2d(3, 4, 3), (3, 8, 8))])
    def test_a_model_that_is_nothing_but_one_layer(self, model: nn.Module, size: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError, match=r"^model: no layer .*whole model.*wrap it in torch\.nn\.Sequential"):
            _survey(model, *size)

    def test_a_model_without_any_layer(self) -> None:
        with pytest.raises(ConfigError, match="it has no Conv2d and no Linear"):
            _survey(nn.Sequential(nn.BatchNorm2d(3)), 3, 8, 8)


class ReadsWeight(nn.Module):
    """The parent of `wo` calls it and looks at its weight, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.out(self.wo(functional.relu(self.wi(values)).to(self.wo.weight.dtype)))


class HiddenReference(nn.Module):
    """Calls a layer through a list that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.order = [self.first]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.second(self.order[0](values))


class TestCannotBeReplaced:
    """Layers that look replaceable until one tries."""

    def test_a_parent_that_also_reads_the_weight(self) -> None:
        found = _survey(ReadsWeight(), 6)
        assert _names(found) == ["wi", "out"]
        assert _reasons(found)["wo"].startswith("the model does not run with it replaced: AttributeError: ")
        assert "weight" in _reasons(found)["wo"]

    def test_a_layer_called_through_an_unregistered_reference(self) -> None:
        found = _survey(HiddenReference(), 6)
        assert _names(found) == ["second"]
        assert "a reference that is not registered" in _reasons(found)["first"]

    def test_both_kinds_in_one_model(self) -> None:
        found = _survey(nn.Sequential(HiddenReference(), ReadsWeight()), 6)
        assert _names(found) == ["0.second", "1.wi", "1.out"]

    def test_their_cost_stays_part_of_the_networks(self) -> None:
        found = _survey(ReadsWeight(), 6)
        (left_out,) = found.left_out
        assert left_out.stage is not None
        assert (left_out.stage.parameters, left_out.calls) == (48, (Call(1, 1),))

    def test_one_forward_pass_finds_that_all_can_be_replaced(self) -> None:
        runs: list[nn.Module] = []

        def forward(model: nn.Module) -> None:
            runs.append(model)
            model(torch.zeros(1, 3, 8, 8))

        survey(_small_network(), forward)
        assert len(runs) == 2


class TestPatterns:
    """`include` and `exclude`."""

    def test_include(self) -> None:
        found = _survey(_small_network(), 3, 8, 8, include=["0"])
        assert _names(found) == ["0"]
        assert _reasons(found) == {"3": "matches no pattern of search.include"}

    def test_exclude_wins(self) -> None:
        found = _survey(_small_network(), 3, 8, 8, include=["*"], exclude=["[1-9]"])
        assert _names(found) == ["0"]
        assert _reasons(found) == {"3": "search.exclude has '[1-9]'"}

    def test_any_name_of_a_shared_module_counts(self) -> None:
        shared = nn.Linear(6, 6)
        model = nn.Sequential(shared, shared, nn.Linear(6, 6))
        assert _names(_survey(model, 6, include=["1"])) == ["0"]
        assert _names(_survey(model, 6, exclude=["1"])) == ["2"]

    @pytest.mark.parametrize("key", ["include", "exclude"])
    def test_one_that_matches_nothing_is_answered_with_the_nearest_name(self, key: str) -> None:
        model = torchvision.models.resnet18(num_classes=2)
        with pytest.raises(ConfigError, match=rf"^search\.{key}: pattern 'layer1\.0\.conv1x'.*mean 'layer1\.0\.conv1'"):
            _survey(model, 3, 32, 32, **{key: ["layer1.0.conv1x"]})

    def test_patterns_that_leave_nothing(self) -> None:
        with pytest.raises(ConfigError, match="no layer can be factorised"):
            _survey(_small_network(), 3, 8, 8, exclude=["*"])


class Counting(nn.Module):
    """Writes to a buffer in every forward pass, and raises when told to."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.layer, self.raises = nn.Linear(6, 6), raises
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        output = self.layer(values)
        if self.raises:
            raise RuntimeError("the sample does not fit")
        return output


class TestLeavesTheModelAlone:
    """A survey is no change."""

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("build", [_small_network, lambda: Counting(raises=False), lambda: Counting(raises=True)])
    def test_weights_buffers_mode_and_hooks(self, build: Callable[[], nn.Module], training: bool) -> None:
        model = build().train(training)
        before = copy.deepcopy(model.state_dict())
        modules = list(model.modules())
        size = (6,) if isinstance(model, Counting) else (3, 8, 8)
        if getattr(model, "raises", False):
            with pytest.raises(RuntimeError, match="the sample does not fit"):
                _survey(model, *size)
        else:
            _survey(model, *size)
        assert list(model.modules()) == modules
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert {module.training for module in model.modules()} == {training}
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    def test_gradients_can_still_be_taken(self) -> None:
        model = _small_network()
        _survey(model, 3, 8, 8)
        model(torch.zeros(2, 3, 8, 8)).sum().backward()
        assert model[0].weight.grad is not None

    def test_no_weight_is_copied(self) -> None:
        model = _small_network()
        seen: list[int] = []

        def forward(network: nn.Module) -> None:
            seen.append(network.get_parameter("0.weight").data_ptr() if isinstance(network[0], nn.Conv2d) else 0)
            network(torch.zeros(1, 3, 8, 8))

        survey(model, forward)
        assert seen[0] == model[0].weight.data_ptr()

    def test_a_model_that_cannot_be_copied_is_named(self) -> None:
        model = _small_network()
        model.computed = model[0].weight * 2  # not a leaf: torch refuses to copy it
        with pytest.raises(ConfigError, match=r"^model: cannot be copied \(RuntimeError"):
            _survey(model, 3, 8, 8)

    @pytest.mark.parametrize("enabled", [True, False])
    def test_the_fused_path_is_as_before(self, enabled: bool) -> None:
        before = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(enabled)
            with without_fused_attention():
                assert not torch.backends.mha.get_fastpath_enabled()
            assert torch.backends.mha.get_fastpath_enabled() == enabled
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
