"""Specifies when outputs count as the same, and which models are no function of their inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from workers.batch import Batch, accuracy
from workers.repeatability import check_repeatable, metric_writes, same_outputs


@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.float64, 1.5e-8), (torch.float32, 3.4e-4), (torch.bfloat16, 0.088)]
)
def test_outputs_are_the_same_in_half_their_digits(dtype: torch.dtype, digits: float) -> None:
    one = torch.tensor([1.0, -4.0], dtype=torch.float64)
    for share, same in ((0.8, True), (1.3, False)):
        other = one + torch.tensor([4 * digits * share, 0.0], dtype=torch.float64)
        difference = abs(float(other.to(dtype)[0]) - 1.0)
        assert difference == pytest.approx(4 * digits * share, rel=0.05)
        assert same_outputs(one.to(dtype), other.to(dtype)) is same


def test_what_is_not_finite_counts_as_no_outputs() -> None:
    bad, good = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])
    assert same_outputs(bad, None)
    assert same_outputs(bad, torch.tensor([float("inf"), 0.0]))
    assert not same_outputs(bad, good)
    assert not same_outputs(good, None)


def test_shapes_and_types_must_be_the_same() -> None:
    assert not same_outputs(torch.zeros(2, 1), torch.zeros(2))
    assert not same_outputs(torch.zeros(2), torch.zeros(2).double())
    assert same_outputs(torch.zeros(0, 3), torch.zeros(0, 3))


class Model(nn.Module):
    """Writes, draws or counts as its kind says; its dropout spares everything for five passes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind, self.calls = nn.Linear(4, 3), kind, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.kind == "unused draw":
            torch.rand(3)
        if self.kind == "dropout":
            dropped = F.dropout(x, 0.5, training=True)
            x = x if self.calls < 6 else dropped
        if self.kind == "write":
            x.abs_()
        return self.layer(x) + (self.calls if self.kind == "counter" else 0)


def made(kind: str) -> Model:
    torch.manual_seed(0)
    return Model(kind)


def few() -> Batch:
    return Batch(torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["plain", "unused draw"])
def test_a_function_of_the_inputs_passes(kind: str) -> None:
    state = torch.get_rng_state()
    check_repeatable(lambda: made(kind), few())
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("kind", "clause"), [("dropout", "dropout left on"), ("write", "writes to its inputs"), ("counter", "keeps state")]
)
def test_what_is_none_is_refused_in_one_line(kind: str, clause: str) -> None:
    torch.manual_seed(0)
    model = Model(kind)
    with pytest.raises(ConfigError, match=clause) as caught:
        check_repeatable(lambda: _copy(model), few())
    assert caught.value.key == "model"
    assert "\n" not in str(caught.value)


def _copy(model: Model) -> Model:
    copied = Model(model.kind)
    copied.load_state_dict(model.state_dict())
    return copied.eval()


def test_inputs_that_are_not_finite_are_no_writes() -> None:
    batch = Batch(torch.full((2, 4), float("nan")), torch.zeros(2, dtype=torch.int64))
    check_repeatable(lambda: made("plain"), batch)


def test_a_metric_that_writes_is_found() -> None:
    def writes(outputs: object, batch: Batch) -> float:
        assert isinstance(outputs, Tensor)
        return float(outputs.mul_(2).max())

    assert metric_writes(lambda: made("plain"), writes, few())
    assert not metric_writes(lambda: made("plain"), accuracy, few())
