"""Exported networks: they run without RankRay for any batch size, and no file is written that is not right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision.models
from torch import nn

from orchestrator.config.loading import check_config
from orchestrator.export import export_model, export_run
from orchestrator.export.contract import Format
from orchestrator.export.formats import formats
from orchestrator.export.program import Program
from orchestrator.local_step import factorising
from orchestrator.preparation import prepare
from orchestrator.result import Effort, build_result, compressed_network, safetensors_bytes
from orchestrator.run_directory import RunDirectory
from orchestrator.searches.contract import Answer
from search_spaces.assembly import assemble, replace_layers
from search_spaces.candidates import Score
from search_spaces.errors import ConfigError
from search_spaces.schemes.registry import schemes
from search_spaces.survey import survey
from workers.batch import Inputs, run_model
from workers.factoriser import factorise
from workers.moments import second_moments

FORMATS = ("safetensors", "torch-export", "onnx")

# What a user without RankRay does.
WITH_TORCH = """
import torch
program = torch.export.load("network.pt2").module()
for size in (1, 7):
    inputs = torch.load(f"inputs{size}.pt", weights_only=True)
    with torch.no_grad():
        outputs = program(**inputs) if isinstance(inputs, dict) else program(inputs)
    torch.save(outputs, f"outputs{size}.pt")
"""
WITH_ONNX_RUNTIME = """
import numpy
import onnxruntime
session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
names = [one.name for one in session.get_inputs()]
for size in (1, 7):
    inputs = [value for _, value in sorted(numpy.load(f"inputs{size}.npz").items())]
    numpy.save(f"outputs{size}.npy", session.run(None, dict(zip(sorted(names), inputs, strict=True)))[0])
assert "torch" not in sys.modules
"""
# None marks a module that cannot be imported: so RankRay is absent, even if it is installed beside torch.
WITHOUT_RANKRAY = """
import sys
sys.modules.update(dict.fromkeys(("orchestrator", "workers", "search_spaces")))
"""


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


class TextEncoder(nn.Module):
    """Called by name, as Hugging Face's encoders are."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head((self.encoder(self.words(ids)) * mask[..., None]).mean(dim=1))


def _compress(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The model in eval mode with every layer of up to 128 channels at about half of its full rank."""
    model = model.eval()
    scheme = schemes().get("channel_svd", "search.scheme")
    found = survey(model, lambda network: run_model(network, inputs))
    layers = [layer for layer in found.layers if layer.dense.out_channels <= 128]  # more would only take longer
    factors = {layer.name: scheme.factorise(layer, model.get_parameter(f"{layer.name}.weight")) for layer in layers}
    ranks = tuple(max(1, len(scheme.ranks(layer)) // 2) for layer in layers)
    return assemble(model, layers, [scheme] * len(layers), ranks, factors)


def _images(size: int) -> torch.Tensor:
    return torch.randn(size, 3, 32, 32)


def _vectors(size: int) -> torch.Tensor:
    return torch.randn(size, 5, 8)


def _sentences(size: int) -> Inputs:
    return {"ids": torch.randint(0, 20, (size, 6)), "mask": torch.ones(size, 6)}


NETWORKS: Mapping[str, tuple[Any, Any]] = {
    "residual": (ResidualNetwork, _images),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), _images),
    "transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), _vectors),
    "called by name": (TextEncoder, _sentences),
}


@pytest.fixture(scope="module", params=NETWORKS)
def compressed(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    """A compressed network, and what makes inputs of a batch size for it."""
    torch.manual_seed(0)
    build, inputs = NETWORKS[request.param]
    return _compress(build(), inputs(1)), inputs


def _elsewhere(code: str, folder: Path) -> None:
    """Runs code in a fresh interpreter that cannot import any part of RankRay."""
    command = [sys.executable, "-I", "-c", WITHOUT_RANKRAY + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestRunsWithoutRankRay:
    """The file is all that another program needs."""

    def test_torch_export_with_torch_alone(self, compressed: tuple[nn.Module, Any], tmp_path: Path) -> None:
        network, make = compressed
        export_model(network, make(1), "torch-export", tmp_path / "network.pt2")
        batches = {size: make(size) for size in (1, 7)}
        for size, batch in batches.items():
            torch.save(batch, tmp_path / f"inputs{size}.pt")
        _elsewhere(WITH_TORCH, tmp_path)
        for size, batch in batches.items():
            outputs = torch.load(tmp_path / f"outputs{size}.pt", weights_only=True)
            with torch.no_grad():
                torch.testing.assert_close(outputs, run_model(network, batch), rtol=1e-4, atol=1e-4)

    def test_onnx_with_onnx_runtime_alone(self, compressed: tuple[nn.Module, Any], tmp_path: Path) -> None:
        numpy = pytest.importorskip("numpy")
        for needed in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(needed)
        network, make = compressed
        export_model(network, make(2), "onnx", tmp_path / "network.onnx")
        batches = {size: make(size) for size in (1, 7)}
        for size, batch in batches.items():
            named = batch if isinstance(batch, dict) else {"input": batch}
            numpy.savez(tmp_path / f"inputs{size}.npz", **{name: tensor.numpy() for name, tensor in named.items()})
        _elsewhere(WITH_ONNX_RUNTIME, tmp_path)
        for size, batch in batches.items():
            outputs = torch.from_numpy(numpy.load(tmp_path / f"outputs{size}.npy"))
            with torch.no_grad():
                torch.testing.assert_close(outputs, run_model(network, batch), rtol=1e-4, atol=1e-4)


class TestSafetensors:
    """Weights for whoever can build the network, with what they belong to."""

    def test_the_architecture_takes_them_back(self, tmp_path: Path) -> None:
        model, scheme = ResidualNetwork(), schemes().get("channel_svd", "search.scheme")
        images = _images(2)
        network = _compress(model, images)
        layers = survey(model, lambda one: one(images[:1])).layers
        path = tmp_path / "network.safetensors"
        export_model(network, images, "safetensors", path)
        ranks = tuple(max(1, len(scheme.ranks(layer)) // 2) for layer in layers)
        bare = replace_layers(ResidualNetwork(), layers, [scheme] * len(layers), ranks).eval()
        bare.load_state_dict(safetensors.torch.load_file(path))
        assert torch.equal(bare(images), network(images))

    def test_metadata_are_json_under_their_own_names(self, tmp_path: Path) -> None:
        path = tmp_path / "network.safetensors"
        ranks = {"conv1": 4, "head": None}
        export_model(ResidualNetwork(), _images(1), "safetensors", path, metadata={"ranks": ranks, "schemes": {}})
        with safetensors.safe_open(path, "pt") as opened:
            noted = opened.metadata()
        assert {name: json.loads(text) for name, text in noted.items()} == {"ranks": ranks, "schemes": {}}

    def test_a_shared_layer(self, tmp_path: Path) -> None:
        shared = nn.Linear(4, 4)
        network = nn.Sequential(shared, nn.ReLU(), shared)
        export_model(network, torch.randn(2, 4), "safetensors", tmp_path / "network.safetensors")
        loaded = safetensors.torch.load_file(tmp_path / "network.safetensors")
        assert set(loaded) == set(network.state_dict())


class DataDependent(nn.Module):
    """Takes a branch that depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values) if values.sum() > 0 else values


class OneBatchSize(DataDependent):
    """Works for two samples alone, if anybody looked."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values).reshape(-1, 4)[: 2 if len(values) == 2 else 1]


class Forgetful(nn.Module):
    """Half of its output is in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(values) * self.calls


class Bare(nn.Module):
    """Returns no tensor."""

    def forward(self, values: torch.Tensor) -> str:
        return "done"


class TestRefuses:
    """What an export cannot be made of, in one line, and without a file."""

    def _refused(self, path: Path, model: nn.Module, format: str, match: str) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            export_model(model, torch.ones(2, 4), format, path)
        assert len(str(caught.value).splitlines()) == 1
        assert not path.exists()
        if path.parent.is_dir():
            assert list(path.parent.iterdir()) == []

    def test_an_unknown_format(self, tmp_path: Path) -> None:
        self._refused(
            tmp_path / "network",
            DataDependent(),
            "torch-exprot",
            "^format: unknown export format 'torch-exprot'; did you mean 'torch-export'",
        )

    @pytest.mark.parametrize("format", ["torch-export", "onnx"])
    @pytest.mark.parametrize("model", [DataDependent(), OneBatchSize()], ids=["values", "batch size"])
    def test_control_flow(self, model: nn.Module, format: str, tmp_path: Path) -> None:
        if format == "onnx":
            pytest.importorskip("onnxscript")
        self._refused(
            tmp_path / "network", model, format, f"^format: the network cannot be written as {format}: [A-Z][A-Za-z]+: "
        )

    def test_control_flow_is_nothing_to_weights(self, tmp_path: Path) -> None:
        export_model(DataDependent(), torch.ones(2, 4), "safetensors", tmp_path / "network.safetensors")

    def test_a_network_whose_outputs_the_file_does_not_give_back(self, tmp_path: Path) -> None:
        # Every call of this network differs from the one before.
        self._refused(
            tmp_path / "network",
            Forgetful(),
            "safetensors",
            r"^format: on a batch of 2 the outputs of the safetensors export differ .* by \d\.\de\+00 of their scale",
        )

    def test_a_network_without_outputs(self, tmp_path: Path) -> None:
        self._refused(tmp_path / "network", Bare(), "safetensors", "^model: its outputs hold no tensor")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere" / "network.safetensors"
        self._refused(
            path, nn.Sequential(nn.Linear(4, 4)), "safetensors", r"network\.safetensors: its folder does not exist"
        )

    def test_a_path_that_is_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is a folder; name a file"):
            export_model(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4), "torch-export", tmp_path)

    @pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
    def test_onnx_where_it_is_not_installed(
        self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)  # how Python marks a module that cannot be imported
        self._refused(
            tmp_path / "network.onnx", nn.Sequential(nn.Linear(4, 4)), "onnx", r'pip install "rankray\[onnx\]"'
        )

    def test_an_earlier_export_is_left_as_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "network.pt2"
        export_model(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4), "torch-export", path)
        before = path.read_bytes()
        with pytest.raises(ConfigError):
            export_model(DataDependent(), torch.ones(2, 4), "torch-export", path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


class TestExports:
    """What holds for every format."""

    @pytest.mark.parametrize("format", FORMATS)
    def test_the_model_is_left_as_it_is(self, format: str, tmp_path: Path) -> None:
        if format == "onnx":
            pytest.importorskip("onnxscript")
        model = ResidualNetwork().train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        export_model(model, _images(2), format, tmp_path / "network")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert {module.training for module in model.modules()} == {True}
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert [path.name for path in tmp_path.iterdir()] == ["network"]

    def test_the_network_exported_is_that_of_eval_mode(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))
        export_model(model, torch.ones(2, 4), "torch-export", tmp_path / "network.pt2")
        program = torch.export.load(tmp_path / "network.pt2").module()
        inputs = torch.randn(3, 4)
        torch.testing.assert_close(program(inputs), model[0](inputs))

    @pytest.mark.parametrize("format", ["torch-export", "onnx"])
    def test_a_forward_that_takes_one_dict(self, format: str, tmp_path: Path) -> None:
        if format == "onnx":
            pytest.importorskip("onnxscript")

        class OneDict(TextEncoder):
            def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # type: ignore[override]
                return {"logits": super().forward(**batch)}

        export_model(OneDict().eval(), _sentences(2), format, tmp_path / "network")
        assert (tmp_path / "network").stat().st_size > 0

    def test_infinite_outputs_may_be_equal(self, tmp_path: Path) -> None:
        class Masked(nn.Module):
            def forward(self, values: torch.Tensor) -> torch.Tensor:
                return values.masked_fill(values > 0, float("-inf"))

        export_model(Masked(), torch.tensor([[1.0, -1.0]]), "torch-export", tmp_path / "network.pt2")

    def test_a_format_that_writes_something_else_is_found_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Careless(Program):
            def write(self, network: nn.Module, example: Inputs, metadata: Mapping[str, str], path: Path) -> None:
                with torch.no_grad():
                    super().write(nn.Sequential(network, nn.Identity(), _Shift(0.01)), example, metadata, path)

        careless: Format = Careless()
        monkeypatch.setitem(formats()._built_in, "torch-export", careless)
        with pytest.raises(ConfigError, match="outputs of the torch-export export differ"):
            export_model(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), "torch-export", tmp_path / "network.pt2")
        assert list(tmp_path.iterdir()) == []


class _Shift(nn.Module):
    """Adds a little."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.by


class TestExportOfARun:
    """`rankray export`: from a finished run, with nothing but its directory."""

    @pytest.fixture(scope="class", params=["kept", "corrected"])
    @staticmethod
    def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module]:
        """A finished run on the digits whose answer was chosen by hand, and its compressed network.

        Its convolutions have no biases; they get some where biases are corrected.
        """
        location = str(tmp_path_factory.mktemp("runs") / "digits.v2")
        digits = {"dataset": "workers.digits:digits", "arguments": {"split": "train"}}
        prepared = prepare(
            check_config(
                {
                    "model": {"build": "workers.models:digits_cnn"},
                    "data": {"train": digits, "validation_size": 16, "calibration_size": 16},
                    "search": {"method": "mbs", "bias": request.param, "budget": {"parameters": 0.3}},
                },
                "config",
            )
        )
        ranks = prepared.space.at([4] * len(prepared.space.layers))
        answer = Answer(ranks, Score(ranks), True, "by hand")
        layers, model = prepared.found.layers, prepared.model
        seen = second_moments(model, layers, prepared.calibration) if prepared.calibration else {}
        factors = {
            layer.name: factorise(
                layer,
                scheme.name,
                model.get_parameter(f"{layer.name}.weight"),
                [] if rank is None else [rank],
                factorising(prepared),
                seen.get(layer.name),
            )
            for layer, scheme, rank in zip(layers, prepared.schemes, ranks, strict=True)
        }
        network = compressed_network(prepared, answer, factors)
        assert ("conv2.1.bias" in network.state_dict()) == (request.param == "corrected")
        run = RunDirectory.create(location, prepared)
        run.storage.write("model.safetensors", safetensors_bytes(prepared, answer, network))
        effort = Effort(evaluations=1, in_bfloat16=0, taken_over=0, stopped=0, skipped=0, seconds=0.0)
        run.write_result(build_result(prepared, answer, network, effort, {}))
        return location, network

    @pytest.mark.parametrize("format", FORMATS)
    def test_every_format(self, finished: tuple[str, nn.Module], format: str, tmp_path: Path) -> None:
        if format == "onnx":
            pytest.importorskip("onnxscript")
        path = tmp_path / "network"
        assert export_run(finished[0], format, path) == path
        digits = torch.randn(3, 1, 8, 8)
        outputs = formats().get(format, "format").run(path, finished[1], digits)
        torch.testing.assert_close(outputs[0], finished[1](digits), rtol=1e-4, atol=1e-4)

    def test_is_named_after_the_run(
        self, finished: tuple[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert export_run(f"{finished[0]}/", "safetensors") == Path("digits.v2.safetensors")
        with safetensors.safe_open("digits.v2.safetensors", "pt") as opened:
            noted = {name: json.loads(text) for name, text in opened.metadata().items()}
        assert set(noted["schemes"].values()) == {"channel_svd"}
        assert set(noted["ranks"].values()) <= {4, None}

    def test_an_unknown_format_is_said_before_anything_is_read(self) -> None:
        with pytest.raises(ConfigError, match=r"^--format: unknown export format 'onxx'; did you mean 'onnx'"):
            export_run("nowhere", "onxx")

    def test_what_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is what `rankray search` writes"):
            export_run(str(tmp_path), "onnx")
