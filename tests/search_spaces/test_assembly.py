"""A rank vector applied to a model: an ordinary network, right wherever layers are shared, fused or half precision."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision.models
from torch import nn

from search_spaces.assembly import assemble, cascade, replace_layers
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.registry import schemes
from search_spaces.survey import Survey, survey

CHANNEL = schemes().get("channel_svd", "search.scheme")
SPATIAL = schemes().get("spatial_svd", "search.scheme")
each_scheme = pytest.mark.parametrize("scheme", [CHANNEL, SPATIAL], ids=lambda scheme: scheme.name)


def _at_share(model: nn.Module, found: Survey, scheme: Scheme, share: float) -> tuple[nn.Module, nn.Module]:
    """The assembled network at a share of full rank, and the dense one with the same truncated weights."""
    layers = found.layers
    factors = {layer.name: scheme.factorise(layer, model.get_parameter(f"{layer.name}.weight")) for layer in layers}
    ranks = tuple(max(1, round(share * len(scheme.ranks(layer)))) for layer in layers)
    truncated = copy.deepcopy(model)
    with torch.no_grad():
        for layer, rank in zip(layers, ranks, strict=True):
            weight = scheme.dense_weight(layer, factors[layer.name], rank)
            truncated.get_parameter(f"{layer.name}.weight").copy_(weight)
    return assemble(model, layers, [scheme] * len(layers), ranks, factors), truncated


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance * (1 + other.abs().max()))


class ResidualNetwork(nn.Module):
    """Two convolutions beside a strided 1 x 1 shortcut, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.shortcut = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(3, 12, 1, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        deep = self.conv2(torch.relu(self.norm(self.conv1(images))))
        return self.head((deep + self.shortcut(images)).mean(dim=(2, 3)))


@each_scheme
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_residual_network_computes_what_its_truncated_weights_do(scheme: Scheme, share: float) -> None:
    model = ResidualNetwork().double().eval()
    images = torch.randn(2, 3, 15, 15, dtype=torch.float64)
    found = survey(model, lambda network: network(images[:1]))
    assembled, truncated = _at_share(model, found, scheme, share)
    with torch.inference_mode():
        assert _close(assembled(images), truncated(images), 1e-10)
        assert _close(assembled(images), model(images), 1e-10) == (share == 1.0)


class TestAssembled:
    """What comes out is an ordinary module of its own."""

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 5))
    found = survey(model, lambda network: network(torch.zeros(1, 3, 8, 8)))

    def _assemble(self, ranks: tuple[int | None, ...], model: nn.Module | None = None) -> nn.Module:
        model = model or self.model
        layers = self.found.layers
        factors = {
            layer.name: CHANNEL.factorise(layer, model.get_parameter(f"{layer.name}.weight"))
            for layer, rank in zip(layers, ranks, strict=True)
            if rank is not None
        }
        return assemble(model, layers, [CHANNEL] * 3, ranks, factors)

    def test_only_torch_modules(self) -> None:
        kinds = {type(module) for module in self._assemble((2, 2, 2)).modules()}
        assert kinds == {nn.Sequential, nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear}

    def test_none_is_dense(self) -> None:
        assembled = self._assemble((None, 3, None))
        assert isinstance(assembled[0], nn.Conv2d)
        assert isinstance(assembled[2], nn.Sequential)
        images = torch.randn(1, 3, 8, 8)
        assert torch.equal(self._assemble((None, None, None))(images), self.model(images))

    def test_the_bias_is_the_last_stages(self) -> None:
        assembled = self._assemble((2, 2, 2))
        assert assembled[0][0].bias is None
        assert torch.equal(assembled[0][1].bias, self.model[0].bias)
        assert assembled[2][1].bias is None

    def test_no_tensor_is_shared_with_the_model(self) -> None:
        before = copy.deepcopy(self.model.state_dict())
        assembled = self._assemble((2, None, 2))
        with torch.no_grad():
            for parameter in assembled.parameters():
                parameter.fill_(7.0)
        assert all(torch.equal(value, before[name]) for name, value in self.model.state_dict().items())

    @pytest.mark.parametrize("training", [True, False])
    def test_the_training_flag_is_the_models(self, training: bool) -> None:
        assembled = self._assemble((2, 2, 2), copy.deepcopy(self.model).train(training))
        assert {module.training for module in assembled.modules()} == {training}

    def test_it_can_be_trained(self) -> None:
        assembled = self._assemble((2, 2, 2))
        assembled(torch.randn(2, 3, 8, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in assembled.parameters())

    def test_half_precision_stays(self) -> None:
        model = copy.deepcopy(self.model).to(torch.bfloat16)
        assembled = self._assemble((6, 4, 5), model)
        images = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in assembled.parameters()} == {torch.bfloat16}
        assert _close(assembled(images).float(), model(images).float(), 0.03)

    def test_the_architecture_alone_takes_the_weights_back(self) -> None:
        assembled = self._assemble((2, None, 3))
        bare = replace_layers(copy.deepcopy(self.model), self.found.layers, [CHANNEL] * 3, (2, None, 3))
        bare.load_state_dict(assembled.state_dict())
        images = torch.randn(1, 3, 8, 8)
        assert torch.equal(bare(images), assembled(images))

    def test_a_cascade_is_where_its_layer_was(self) -> None:
        layer = self.found.layers[0]
        like = nn.Conv2d(3, 6, 3, device="meta", dtype=torch.float64)
        stages = cascade(layer, CHANNEL.stages(layer, 2), like)
        assert {(stage.weight.device.type, stage.weight.dtype) for stage in stages} == {("meta", torch.float64)}


def test_a_shared_module_is_replaced_under_all_its_names_by_one_cascade() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    found = survey(model, lambda network: network(torch.zeros(1, 6)))
    assembled, truncated = _at_share(model, found, CHANNEL, 0.5)
    assert assembled[0] is assembled[2]
    inputs = torch.randn(3, 6)
    torch.testing.assert_close(assembled(inputs), truncated(inputs))


class TestTransformerEncoders:
    """Torch's fused encoder path reads the linear layers' weights; with cascades it must not be taken."""

    pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("inference", [torch.inference_mode, torch.no_grad])
    def test_in_eval_mode(self, norm_first: bool, masked: bool, inference: type) -> None:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        # Nested tensors are torch's default wherever the fused path may be taken.
        model = nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first).eval()
        words = torch.randn(3, 5, 8)
        padding = torch.arange(5).expand(3, 5) >= torch.tensor([[5], [4], [2]]) if masked else None
        found = survey(model, lambda network: network(words[:1]))
        assembled, truncated = _at_share(model, found, CHANNEL, 0.5)
        with inference():
            expected = truncated(words, src_key_padding_mask=padding)
            output = assembled(words, src_key_padding_mask=padding)
        kept = slice(None) if padding is None else ~padding  # what stands at padded positions means nothing
        assert _close(output[kept], expected[kept], 1e-5)

    def test_a_partly_factorised_encoder(self) -> None:
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.TransformerEncoder(block, 2).eval()
        words = torch.randn(2, 5, 8)
        padding = torch.zeros(2, 5, dtype=torch.bool)
        padding[1, 3:] = True
        found = survey(model, lambda network: network(words[:1]), include=["layers.1.linear2"])
        assembled, truncated = _at_share(model, found, CHANNEL, 0.5)
        with torch.inference_mode():
            output = assembled(words, src_key_padding_mask=padding)
            assert _close(output[~padding], truncated(words, src_key_padding_mask=padding)[~padding], 1e-5)

    def test_a_vision_transformer(self) -> None:
        model = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4).double().eval()
        nn.init.normal_(model.heads.head.weight)
        images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        found = survey(model, lambda network: network(images[:1]))
        assembled, truncated = _at_share(model, found, CHANNEL, 0.5)
        with torch.inference_mode():
            assert _close(assembled(images), truncated(images), 1e-10)
