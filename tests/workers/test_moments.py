"""Specifies the moments of layers' inputs: those of explicit patches in float64, however the pass is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import workers.moments
from search_spaces.errors import ConfigError
from search_spaces.moments import Moment
from search_spaces.survey import survey
from workers.batch import Batch, Inputs, run_model
from workers.moments import MomentSum, second_moments

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (4, 2), "padding": "same"},
    {"kernel_size": (2, 4), "padding": "same", "dilation": (3, 1), "padding_mode": "circular"},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (5, 1), "stride": (2, 3), "padding": (2, 0)},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (3, 1), "dilation": (2, 3)},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate", "stride": 3},
    {"kernel_size": 7, "padding": 3, "stride": 2, "padding_mode": "circular"},
]


def patches_of(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Every patch, `(P, n)`, in float64: a convolution whose weight picks one number of it gives that number."""
    columns = []
    for index in range(module.weight[0].numel()):
        weight = torch.zeros(module.weight[0].numel(), dtype=torch.float64)
        weight[index] = 1.0
        picked = module._conv_forward(inputs.double(), weight.view_as(module.weight[:1]), None)
        columns.append(picked.flatten())
    return torch.stack(columns, 1).detach()


def assert_moment_of(found: Moment, patches: Tensor, tolerance: float = 1e-5) -> None:
    patches = patches.double()
    second = patches.T @ patches / len(patches)
    assert found.patches == len(patches)
    assert found.second.dtype == found.mean.dtype == torch.float64
    assert torch.equal(found.second, found.second.T)
    scale = float(second.diagonal().max()) + 1e-300
    torch.testing.assert_close(found.second, second, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(found.mean, patches.mean(0), rtol=0, atol=tolerance * scale**0.5)


def moments(model: nn.Module, inputs: Inputs, slice_size: int = 64) -> dict[str, Moment]:
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    batch = Batch(inputs, torch.zeros(len(first), dtype=torch.int64))
    layers = survey(model, lambda network: run_model(network, batch.example().inputs)).layers
    return second_moments(model, layers, batch, slice_size)


class TestConvolutions:
    @pytest.mark.parametrize("options", GEOMETRIES, ids=str)
    @pytest.mark.parametrize("chunk", [1 << 20, 1 << 13, 1])
    def test_every_geometry_in_chunks_of_every_size(
        self, options: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        monkeypatch.setattr(workers.moments, "CHUNK_NUMBERS", chunk)
        monkeypatch.setattr(workers.moments, "_FEWEST", 1)
        convolution = nn.Conv2d(3, 4, **options)
        inputs = torch.randn(5, 3, 11, 9) + 0.5
        found = moments(nn.Sequential(convolution), inputs, slice_size=2)
        assert_moment_of(found["0"], patches_of(convolution, inputs))

    def test_patches_are_laid_out_as_the_weight(self) -> None:
        torch.manual_seed(1)
        convolution = nn.Conv2d(3, 4, (3, 2), 2, 1, dtype=torch.float64)
        inputs = torch.randn(6, 3, 9, 8, dtype=torch.float64)
        found = moments(nn.Sequential(convolution), inputs)["0"]
        outputs = (convolution(inputs) - convolution.bias[:, None, None]).transpose(0, 1).flatten(1)  # type: ignore[index]
        matrix = convolution.weight.flatten(1)
        torch.testing.assert_close(matrix @ found.mean, outputs.mean(1))
        torch.testing.assert_close(matrix @ found.second @ matrix.T, outputs @ outputs.T / outputs.shape[1])

    def test_one_large_image_is_cut_into_bands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers.moments, "CHUNK_NUMBERS", 1 << 13)
        monkeypatch.setattr(workers.moments, "_FEWEST", 1)
        largest = 0
        unfold = F.unfold

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal largest
            columns = unfold(*args, **kwargs)
            largest = max(largest, columns.numel())
            return columns

        monkeypatch.setattr(workers.moments.F, "unfold", watched)
        convolution = nn.Conv2d(2, 3, 3, 2, 1)
        image = torch.randn(1, 2, 65, 31)
        assert_moment_of(moments(nn.Sequential(convolution), image)["0"], patches_of(convolution, image))
        assert 0 < largest <= 1 << 13

    def test_an_image_without_a_batch_dimension(self) -> None:
        class Single(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 2, 3)

            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([self.conv(image) for image in x])

        model, inputs = Single(), torch.randn(3, 3, 6, 6)
        assert_moment_of(moments(model, inputs)["conv"], patches_of(model.conv, inputs))


class TestLinearLayers:
    @pytest.mark.parametrize("shape", [(4, 6), (3, 5, 6), (2, 3, 4, 6)])
    @pytest.mark.parametrize("chunk", [1 << 20, 600])
    def test_any_leading_dimensions(self, shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers.moments, "CHUNK_NUMBERS", chunk)
        monkeypatch.setattr(workers.moments, "_FEWEST", 1)
        inputs = torch.randn(shape)
        assert_moment_of(moments(nn.Sequential(nn.Linear(6, 3)), inputs)["0"], inputs.reshape(-1, 6))

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.bfloat16, 1e-6)])
    def test_other_dtypes(self, dtype: torch.dtype, tolerance: float) -> None:
        inputs = torch.randn(40, 6).to(dtype)
        assert_moment_of(moments(nn.Sequential(nn.Linear(6, 3, dtype=dtype)), inputs)["0"], inputs, tolerance)


class Twice(nn.Module):
    """One convolution under two names, called twice, once by keyword; and a linear layer on named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.same = self.conv
        self.drop, self.head = nn.Dropout(0.9), nn.Linear(3, 2)

    def forward(self, pixels: Tensor, scale: Tensor) -> Tensor:
        x = self.same(input=torch.relu(self.conv(pixels)))
        return self.head(input=self.drop(x.mean((2, 3)))) * scale


def test_all_calls_of_a_shared_module_add_up_by_keyword_too() -> None:
    torch.manual_seed(2)
    model = Twice()
    inputs = {"pixels": torch.randn(7, 3, 5, 5), "scale": torch.rand(7, 1)}
    found = moments(model, inputs, slice_size=3)
    inner = torch.relu(model.conv(inputs["pixels"])).detach()
    assert set(found) == {"conv", "head"}
    both = torch.cat([patches_of(model.conv, inputs["pixels"]), patches_of(model.conv, inner)])
    assert_moment_of(found["conv"], both)
    assert_moment_of(found["head"], model.conv(inner).mean((2, 3)).detach())


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(64, 2)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments(model, torch.randn(5, 3, 6, 6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training or module._forward_pre_hooks for module in model.modules())


def test_torchs_own_transformer_layer_is_seen_into() -> None:
    torch.manual_seed(3)
    model = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True).eval()
    inputs = torch.randn(6, 3, 4)
    found = moments(model, inputs)
    assert {name: moment.patches for name, moment in found.items()} == {"linear1": 18, "linear2": 18}


@pytest.mark.parametrize("slice_size", [1, 3, 8, 100])
def test_slices_do_not_matter(slice_size: int) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, 2)).double()
    inputs = torch.randn(8, 3, 7, 7, dtype=torch.float64)
    whole, sliced = moments(model, inputs), moments(model, inputs, slice_size)
    for name, moment in whole.items():
        torch.testing.assert_close(sliced[name].second, moment.second, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sliced[name].mean, moment.mean, rtol=1e-12, atol=1e-12)
        assert sliced[name].patches == moment.patches


def test_float32_sums_of_many_patches_keep_small_eigenvalues() -> None:
    """Constant images with a trace of noise: summed in float32 alone, the noise would be lost."""
    torch.manual_seed(5)
    inputs = 1.0 + 1e-3 * torch.randn(300, 1, 32, 32)
    found = moments(nn.Sequential(nn.Conv2d(1, 2, 2)), inputs)["0"]
    smallest = torch.linalg.eigvalsh(found.second)[0]
    assert float(smallest) == pytest.approx(1e-6, rel=0.1)


class TestPlainBatches:
    def test_one_image(self) -> None:
        image = torch.randn(1, 3, 5, 5)
        convolution = nn.Conv2d(3, 2, 5)
        found = moments(nn.Sequential(convolution), image)["0"]
        assert found.patches == 1
        assert_moment_of(found, image.reshape(1, -1))

    @pytest.mark.parametrize("value", [0.0, 2.0])
    def test_constant_images(self, value: float) -> None:
        found = moments(nn.Sequential(nn.Conv2d(2, 2, 3)), torch.full((4, 2, 6, 6), value))["0"]
        torch.testing.assert_close(found.second, torch.full((18, 18), value**2, dtype=torch.float64))
        torch.testing.assert_close(found.mean, torch.full((18,), value, dtype=torch.float64))

    def test_sums_of_parts_add_up(self) -> None:
        patches = torch.randn(20, 5)
        first, second = MomentSum.nothing(5), MomentSum.nothing(5)
        first.add_columns(patches[:13].T)
        second.add_columns(patches[13:].T)
        first.add(second)
        wide = patches.double()
        torch.testing.assert_close(first.second, wide.T @ wide, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(first.total, wide.sum(0), rtol=1e-6, atol=1e-5)
        assert first.patches == 20


class TestMistakes:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_bad_data_are_blamed_with_the_first_layer_that_gets_them(self, value: float) -> None:
        model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
        inputs = torch.randn(5, 3, 6, 6)
        layers = survey(model, lambda network: network(inputs[:1])).layers
        inputs[3, 0, 2, 2] = value
        with pytest.raises(ConfigError, match="layer 1 is the first to get") as caught:
            second_moments(model, layers[::-1], Batch(inputs, torch.zeros(5)), 2)
        assert caught.value.key == "data.calibration_size"
        assert "\n" not in str(caught.value)
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_a_bad_weight_is_blamed_on_the_model(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 2, 1))
        with torch.no_grad():
            model[0].weight[0, 0, 0, 0] = float("nan")
        with pytest.raises(ConfigError, match="inputs of layer 1 are NaN or infinite") as caught:
            moments(model, torch.randn(2, 3, 6, 6))
        assert caught.value.key == "model"

    def test_squares_that_overflow(self) -> None:
        with pytest.raises(ConfigError, match="layer 0 are so large that their squares overflow"):
            moments(nn.Sequential(nn.Linear(3, 2)), torch.full((2, 3), 1e30))

    def test_an_empty_batch(self) -> None:
        with pytest.raises(ConfigError, match=r"data\.calibration_size: the calibration batch is empty"):
            second_moments(nn.Linear(3, 2), [], Batch(torch.zeros(0, 3), torch.zeros(0)))

    def test_a_layer_that_is_not_called(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2))
        inputs = torch.randn(2, 3)
        layers = survey(model, lambda network: network(inputs[:1])).layers
        unused = nn.ModuleDict({"0": nn.Linear(3, 2), "other": nn.Linear(3, 3)})
        unused.forward = lambda x: unused["other"](x)  # type: ignore[method-assign]
        with pytest.raises(ConfigError, match="layer 0 is never called"):
            second_moments(unused, layers, Batch(inputs, torch.zeros(2)))
