"""Specifies moments computed by the cluster: the numbers of one process, whatever the cluster looks like."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import torch
from torch import nn

import workers.moment_tasks
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.moments import Moment
from search_spaces.survey import survey
from workers.batch import Batch
from workers.evaluator import batch_to_tensors
from workers.moment_tasks import SHARE, gather_moments
from workers.moments import second_moments
from workers.shared_tensors import checksums, pack, skeleton, weights_of


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    return survey(model, lambda network: network(torch.randn(1, 3, 6, 6))).layers


def batch_of(samples: int) -> Batch:
    generator = torch.Generator().manual_seed(samples)
    return Batch(torch.randn(samples, 3, 6, 6, generator=generator), torch.zeros(samples, dtype=torch.int64))


def gather(model: nn.Module, batch: Batch, **options: Any) -> dict[str, Moment]:
    references = [ray.put(one) for one in (skeleton(model), pack(weights_of(model)), pack(batch_to_tensors(batch)))]
    return gather_moments(layers_of(model), *references, samples=len(batch), **options)


def assert_equal(one: dict[str, Moment], other: dict[str, Moment]) -> None:
    """To the last bit."""
    assert list(one) == list(other)
    for name, moment in one.items():
        assert torch.equal(moment.second, other[name].second)
        assert torch.equal(moment.mean, other[name].mean)
        assert moment.patches == other[name].patches


@pytest.mark.parametrize("samples", [1, 2 * SHARE + 1])
def test_the_result_is_that_of_one_process(ray_cluster: Cluster, samples: int) -> None:
    model, batch = network(), batch_of(samples)
    found = gather(model, batch)
    expected = second_moments(model, layers_of(model), batch)
    assert list(found) == list(expected)
    for name, moment in expected.items():
        # Whole shares are the same float32 products; only their float64 sums are ordered otherwise.
        torch.testing.assert_close(found[name].second, moment.second, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[name].mean, moment.mean, rtol=1e-12, atol=1e-12)
        assert found[name].patches == moment.patches


def test_it_does_not_depend_on_how_many_run_at_once(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = network(), batch_of(3 * SHARE)
    found = gather(model, batch)
    for ahead in (1, 2):
        monkeypatch.setattr(workers.moment_tasks, "_ahead", lambda _layers, _threads, ahead=ahead: ahead)
        assert_equal(gather(model, batch), found)


def test_nothing_shared_is_written_to(ray_cluster: Cluster) -> None:
    model, batch = network(), batch_of(2 * SHARE)
    weights = ray.put(pack(weights_of(model)))
    stored = ray.put(pack(batch_to_tensors(batch)))
    before = checksums(ray.get(weights)), checksums(ray.get(stored))
    one = gather_moments(layers_of(model), ray.put(skeleton(model)), weights, stored, len(batch))
    assert (checksums(ray.get(weights)), checksums(ray.get(stored))) == before
    assert_equal(one, gather_moments(layers_of(model), ray.put(skeleton(model)), weights, stored, len(batch)))
    one["0"].second.add_(1.0)  # the caller's own memory


def test_named_inputs(ray_cluster: Cluster) -> None:
    model, batch = network(), batch_of(SHARE + 5)
    named = Batch({"input": batch.inputs}, batch.labels)  # type: ignore[dict-item]
    assert_equal(gather(model, named), gather(model, batch))


def test_a_mistake_is_one_line_that_names_the_layer(ray_cluster: Cluster) -> None:
    model, batch = network(), batch_of(3 * SHARE)
    batch.inputs[SHARE + 3, 0, 0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"^data\.calibration_size: [^\n]* layer 0 [^\n]*$") as caught:
        gather(model, batch)
    assert type(caught.value) is ConfigError
    with torch.no_grad():
        model[3].bias[0] = float("inf")  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"^model: the inputs of layer 5 are NaN or infinite"):
        gather(model, batch_of(10))


def test_an_empty_batch_is_refused(ray_cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="the calibration batch is empty"):
        gather(network(), batch_of(0))
