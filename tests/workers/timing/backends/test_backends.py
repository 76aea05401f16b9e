"""The contract of every backend: right outputs in every precision it has, clear refusals, versions, a timer."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.layers import Stage
from workers.timing.backends import backends
from workers.timing.contract import Backend, Device, Precision
from workers.timing.session import TOLERANCES
from workers.timing.workloads import LayerWorkload, NetworkWorkload

CONV = Stage(8, 12, (3, 3), (2, 2), (1, 1))
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
QUICK = ("torch", "onnxruntime", "openvino")
WORKLOADS = {
    "cascade": LayerWorkload(CONV, True, 9, 9, "tucker2", 4, batch_size=2),
    "groups": LayerWorkload(CONV, False, 9, 9, "sliced_svd", (2, 3)),
    "dense": LayerWorkload(CONV, True, 9, 9),
    "linear": LayerWorkload(Stage(8, 12, linear=True), True, 1, 5, "channel_svd", 3),
    "network": NetworkWorkload(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval(),
        (3, 8, 8),
    ),
}


def _backend(name: str) -> Backend:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    return backends().get(name, "backend")


def _gap(backend: Backend, workload: LayerWorkload | NetworkWorkload, device: Device) -> float:
    """How far the outputs are from the reference, relative to its largest value."""
    program = workload.program()
    _, outputs = backend.build(program, device)
    found = outputs()
    assert found.shape == program.reference.shape
    assert found.dtype == torch.float32
    return float((found - program.reference).abs().max() / program.reference.abs().max())


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("kind", WORKLOADS)
def test_outputs_are_the_reference_s(name: str, kind: str) -> None:
    assert _gap(_backend(name), WORKLOADS[kind], Device("cpu0", name)) < 1e-5


@pytest.mark.parametrize("name", QUICK)
def test_a_block_takes_time_and_more_calls_take_more(name: str) -> None:
    backend, device = _backend(name), Device("cpu0", name)
    program = WORKLOADS["cascade"].program()
    run, _ = backend.build(program, device)
    time_block = backend.timer(device)
    few, many = (min(time_block(run, calls) for _ in range(5)) for calls in (2, 200))
    assert 0.0 < few < many


@pytest.mark.parametrize("name", QUICK)
def test_several_programs_are_built_side_by_side(name: str) -> None:
    backend, device = _backend(name), Device("cpu0", name)
    programs = [WORKLOADS[kind].program() for kind in ("cascade", "dense")]
    built = [backend.build(program, device)[1] for program in programs]
    for program, outputs in zip(programs, built, strict=True):
        torch.testing.assert_close(outputs(), program.reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_versions_name_what_runs(name: str) -> None:
    versions = _backend(name).versions()
    assert {PACKAGES.get(name, "torch"), "torch"} <= set(versions)
    assert all(isinstance(text, str) and text for text in versions.values())


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_torch_in_half_precision(precision: Precision) -> None:
    gap = _gap(_backend("torch"), WORKLOADS["cascade"], Device("cpu0", "torch", precision=precision))
    assert 1e-5 < gap < TOLERANCES[precision]


def test_onnxruntime_in_float16_on_the_cpu_computes_in_float16_or_casts() -> None:
    device = Device("cpu0", "onnxruntime", precision="float16")
    assert 1e-6 < _gap(_backend("onnxruntime"), WORKLOADS["cascade"], device) < TOLERANCES["float16"]


def test_a_precision_that_a_backend_cannot_is_refused() -> None:
    device = Device("cpu0", "onnxruntime", precision="bfloat16")
    with pytest.raises(MeasurementError, match=r"^cpu0: onnxruntime in bfloat16: .+"):
        _backend("onnxruntime").build(WORKLOADS["cascade"].program(), device)


def test_channels_last_gives_the_same_outputs() -> None:
    device = Device("cpu0", "torch", options={"channels_last": True})
    assert _gap(_backend("torch"), WORKLOADS["cascade"], device) < 1e-5


class Shouting(nn.Module):
    """Does what no program can hold: asks what its inputs are."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 2 if float(inputs.sum()) > 0 else inputs


@pytest.mark.parametrize("name", ["onnxruntime"])
def test_a_network_that_a_backend_cannot_take_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(MeasurementError, match=f"^cpu0: {name}") as refused:
        _backend(name).build(NetworkWorkload(Shouting(), (3,)).program(), Device("cpu0", name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", backends().names())
def test_an_unknown_option_is_named(name: str) -> None:
    device = Device("cpu0", name, options={"turbo": True})
    with pytest.raises(ConfigError, match=r"^devices\.cpu0\.options\.turbo: unknown option of " + name):
        _backend(name).build(WORKLOADS["cascade"].program(), device)


@pytest.mark.parametrize("name", ["torch", "torch_compile", "onnxruntime"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_named(name: str) -> None:
    device = Device("v100", name, accelerator="cuda:0")
    with pytest.raises((MeasurementError, ConfigError), match=r"no CUDA"):
        _backend(name).build(WORKLOADS["cascade"].program(), device)


def test_an_accelerator_that_a_backend_does_not_drive_is_named() -> None:
    device = Device("phone", "torch", accelerator="vulkan")
    with pytest.raises(MeasurementError, match="torch runs on cpu and cuda, not on 'vulkan'"):
        _backend("torch").build(WORKLOADS["cascade"].program(), device)


def test_an_unknown_provider_is_named() -> None:
    device = Device("cpu0", "onnxruntime", options={"provider": "tensorrrt"})
    with pytest.raises(ConfigError, match="unknown provider 'tensorrrt'; did you mean 'tensorrt'"):
        _backend("onnxruntime").build(WORKLOADS["cascade"].program(), device)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_backend_that_is_not_installed_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(ConfigError, match=rf"^backend {name}: needs {name}, which does not import here .*pip install "):
        backends().get(name, "backend").versions()


def test_an_unknown_backend_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown timing backend 'onnxruntme'; did you mean 'onnxruntime'"):
        backends().get("onnxruntme", "devices.cpu0.backend")


@pytest.mark.slow
class TestTorchCompile:
    """It compiles for seconds."""

    def test_more_layers_than_torch_keeps_compiled_code_for_are_all_compiled_and_right(self) -> None:
        backend, device = _backend("torch_compile"), Device("cpu0", "torch_compile")
        for rank in range(1, 11):
            assert _gap(backend, LayerWorkload(CONV, True, 9, 9, "channel_svd", rank), device) < 1e-5
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 10

    def test_a_network_that_breaks_into_several_graphs_is_refused(self) -> None:
        with pytest.raises(MeasurementError, match=r"^cpu0: torch_compile"):
            _backend("torch_compile").build(
                NetworkWorkload(Shouting(), (3,)).program(), Device("cpu0", "torch_compile")
            )
