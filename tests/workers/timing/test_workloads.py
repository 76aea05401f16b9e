"""Workloads: equal if and only if the work is, the same in every process, and computing what the dense layer does."""

from __future__ import annotations

import importlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces.errors import MeasurementError
from search_spaces.layers import Call, Layer, Stage
from search_spaces.schemes.registry import schemes
from search_spaces.survey import survey
from workers.timing.workloads import LayerWorkload, NetworkWorkload, layer_workloads, network_workload

CONV = Stage(8, 12, (3, 3), padding=(1, 1))
LINEAR = Stage(8, 12, linear=True)


@st.composite
def layer_workloads_drawn(draw: st.DrawFn) -> LayerWorkload:
    """Any layer that a network may have, at any rank of any scheme."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    channels = st.sampled_from([2, 4, 6])
    if draw(st.booleans()):
        dense = Stage(draw(channels), draw(channels), linear=True)
        size = (1, draw(st.integers(1, 3)))
    else:
        padding = draw(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")))
        mode = draw(st.sampled_from(["zeros", "circular"]))
        dense = Stage(draw(channels), draw(channels), draw(pair), draw(pair), padding, draw(pair), padding_mode=mode)
        size = (draw(st.integers(7, 9)), draw(st.integers(7, 9)))
    name = draw(st.sampled_from(schemes().names()))
    scheme = schemes().get(name, "scheme")
    rank = draw(st.sampled_from([None, *scheme.ranks(Layer("", dense, False, (Call(*size),)))]))
    return LayerWorkload(dense, draw(st.booleans()), *size, name, rank, draw(st.integers(1, 3)))


class TestProgram:
    """What a backend builds, and what it must give."""

    @given(layer_workloads_drawn())
    @settings(deadline=None)
    def test_the_reference_is_what_the_cascade_computes(self, workload: LayerWorkload) -> None:
        program = workload.program()
        found = program.module(program.inputs)
        assert program.reference.shape == found.shape
        torch.testing.assert_close(found, program.reference, rtol=1e-4, atol=1e-5)

    @given(layer_workloads_drawn())
    @settings(deadline=None, max_examples=20)
    def test_is_the_same_every_time(self, workload: LayerWorkload) -> None:
        first, second = workload.program(), pickle.loads(pickle.dumps(workload)).program()
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.reference, second.reference)

    def test_asks_for_no_gradients(self) -> None:
        program = LayerWorkload(CONV, True, 9, 9, "tucker2", 4).program()
        assert not any(parameter.requires_grad for parameter in program.module.parameters())
        assert not program.module.training

    def test_weights_keep_the_size_of_activations(self) -> None:
        program = LayerWorkload(Stage(64, 64, (3, 3), padding=(1, 1)), False, 9, 9, "tucker2", 32).program()
        assert 0.1 < float(program.reference.std()) < 10.0

    @pytest.mark.parametrize(
        ("workload", "shape"),
        [
            (LayerWorkload(CONV, True, 9, 7, batch_size=2), (2, 8, 9, 7)),
            (LayerWorkload(LINEAR, True, 1, 1, batch_size=2), (2, 8)),
            (LayerWorkload(LINEAR, True, 1, 5, batch_size=2), (2, 5, 8)),
        ],
    )
    def test_inputs_have_the_layer_s_shape(self, workload: LayerWorkload, shape: tuple[int, ...]) -> None:
        assert workload.program().inputs.shape == shape


class TestEquality:
    """Equal if and only if the work is."""

    workload = LayerWorkload(CONV, True, 9, 9, "channel_svd", 4, 2)

    @given(layer_workloads_drawn())
    def test_survives_pickling(self, workload: LayerWorkload) -> None:
        copied = pickle.loads(pickle.dumps(workload))
        assert copied == workload
        assert hash(copied) == hash(workload)
        assert (copied.subject, copied.macs, copied.kind) == (workload.subject, workload.macs, "layer")

    @pytest.mark.parametrize(
        "change",
        [
            {"bias": False},
            {"height": 10},
            {"width": 10},
            {"rank": 5},
            {"rank": None},
            {"scheme": "spatial_svd"},
            {"batch_size": 1},
            {"dense": replace(CONV, stride=(2, 2))},
            {"dense": replace(CONV, stride=(1, 2))},
            {"dense": replace(CONV, padding="same")},
            {"dense": replace(CONV, padding=(0, 1))},
            {"dense": replace(CONV, dilation=(2, 2))},
            {"dense": replace(CONV, padding_mode="reflect")},
            {"dense": replace(CONV, kernel=(3, 1))},
            {"dense": replace(CONV, in_channels=4)},
        ],
        ids=str,
    )
    def test_other_work_is_another_workload(self, change: dict[str, object]) -> None:
        assert replace(self.workload, **change) != self.workload  # type: ignore[arg-type]

    def test_dense_work_has_no_scheme(self) -> None:
        assert LayerWorkload(CONV, True, 9, 9, "tucker2") == LayerWorkload(CONV, True, 9, 9, "channel_svd")

    def test_schemes_that_come_to_the_same_stages_are_the_same_work(self) -> None:
        flat = replace(CONV, kernel=(1, 1), padding=(0, 0))
        assert LayerWorkload(flat, True, 9, 9, "tucker2", 4) == LayerWorkload(flat, True, 9, 9, "channel_svd", 4)

    def test_a_linear_layer_is_no_convolution(self) -> None:
        flat = Stage(8, 12)
        assert LayerWorkload(flat, True, 1, 5) != LayerWorkload(LINEAR, True, 1, 5)

    def test_the_subject_can_be_read(self) -> None:
        assert self.workload.subject == "9x9: conv 8>4 3x3 padding 1x1; conv 4>12 1x1; bias"

    @given(layer_workloads_drawn())
    def test_macs_are_the_layer_s(self, workload: LayerWorkload) -> None:
        layer = Layer("", workload.dense, workload.bias, (Call(workload.height, workload.width),))
        assert workload.macs == layer.macs(workload.stages)


class TestBadInput:
    """What is no workload."""

    def test_a_rank_without_a_scheme(self) -> None:
        with pytest.raises(ValueError, match="rank 4 belongs to a scheme"):
            LayerWorkload(CONV, True, 9, 9, rank=4)

    @pytest.mark.parametrize("change", [{"batch_size": 0}, {"height": 0}, {"width": -1}])
    def test_a_size_of_nothing(self, change: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="must be positive"):
            replace(LayerWorkload(CONV, True, 9, 9), **change)  # type: ignore[arg-type]


class TestCallsOfALayer:
    """A layer's latency is the sum over its workloads."""

    def test_one_workload_per_call(self) -> None:
        layer = Layer("head", CONV, True, (Call(9, 9), Call(5, 5), Call(9, 9)))
        found = layer_workloads(layer, "channel_svd", 4, batch_size=2)
        assert [(one.height, one.batch_size) for one in found] == [(9, 2), (5, 2), (9, 2)]
        assert found[0] == found[2]

    def test_windows_in_the_batch_are_inputs(self) -> None:
        layer = Layer("windows", CONV, True, (Call(9, 9, count=4),))
        assert layer_workloads(layer, "channel_svd", None, batch_size=2)[0].batch_size == 8


def _network(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4)).eval()


class Doubling(nn.Module):
    """Returns two tensors."""

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, 2 * inputs


class TestNetworks:
    """Whole networks, at rank vectors."""

    def _workload(self, ranks: tuple[int | None, ...] = (2, 3), width: int = 6) -> NetworkWorkload:
        model = _network(width)
        layers = survey(model, lambda network: network(torch.zeros(1, 3, 8, 8))).layers
        scheme = schemes().get("channel_svd", "scheme")
        return network_workload(model, layers, [scheme] * 2, ranks, (3, 8, 8), batch_size=2)

    def test_the_reference_is_what_torch_gives(self) -> None:
        program = self._workload().program()
        assert program.inputs.shape == (2, 3, 8, 8)
        torch.testing.assert_close(program.module(program.inputs), program.reference)

    def test_replaced_layers_are_cascades(self) -> None:
        module = self._workload((2, None)).module
        assert isinstance(module[0], nn.Sequential)  # type: ignore[index]
        assert isinstance(module[3], nn.Linear)  # type: ignore[index]

    def test_equal_architectures_are_equal_work_whatever_their_weights(self) -> None:
        assert self._workload() == self._workload()

    def test_survives_pickling(self) -> None:
        workload = self._workload()
        copied = pickle.loads(pickle.dumps(workload))
        assert copied == workload
        assert torch.equal(copied.program().reference, workload.program().reference)

    def test_other_ranks_widths_inputs_and_batches_are_other_work(self) -> None:
        workload = self._workload()
        others = [self._workload((2, 4)), self._workload((2, None)), self._workload(width=5)]
        others += [replace(workload, batch_size=1), replace(workload, input_shape=(3, 9, 8))]
        assert len({workload, *others}) == 1 + len(others)

    def test_another_forward_is_another_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        file = tmp_path / "timed_network.py"
        text = "from torch import nn\nclass Timed(nn.Module):\n    def forward(self, x):\n        return x"
        file.write_text(text)
        module = importlib.import_module("timed_network")
        first = NetworkWorkload(module.Timed(), (3,))
        assert first == NetworkWorkload(module.Timed(), (3,))
        file.write_text(f"{text}.exp()")
        assert first != NetworkWorkload(importlib.reload(module).Timed(), (3,))

    def test_macs_are_those_of_the_stages(self) -> None:
        assert self._workload((None, None)).macs == 6 * 27 * 36 + 216 * 4
        assert self._workload((2, None)).macs == (2 * 27 + 2 * 6) * 36 + 216 * 4

    def test_is_left_as_it_was(self) -> None:
        workload = self._workload()
        before = [parameter.clone() for parameter in workload.module.parameters()]
        workload.program().module[0][0].weight.zero_()  # type: ignore[index]
        assert all(torch.equal(one, other) for one, other in zip(before, workload.module.parameters(), strict=True))

    def test_that_does_not_take_such_inputs_is_refused(self) -> None:
        with pytest.raises(MeasurementError, match=r"does not take inputs of \(1, 3, 5, 5\)"):
            NetworkWorkload(_network(), (3, 5, 5)).program()

    def test_that_returns_several_tensors_is_refused(self) -> None:
        with pytest.raises(MeasurementError, match="returns tuple; only networks that return one tensor are timed"):
            NetworkWorkload(Doubling(), (3,)).program()
