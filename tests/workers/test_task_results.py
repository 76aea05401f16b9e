"""What Ray's tasks return, and how their refusals arrive."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import RayTaskError

from orchestrator.ray_cluster import Cluster
from search_spaces.errors import ConfigError, InfeasibleBudgetError
from workers.task_results import results_of


def task(number: int) -> int:
    if number == 3:
        raise ConfigError("model.checkpoint", "layer conv1: the weight is not finite")
    if number == 4:
        raise InfeasibleBudgetError("search.budget", "out of reach", {"macs": 0.5})
    if number == 5:
        raise KeyError("a defect")
    return number * number


def started(*numbers: int) -> list[ray.ObjectRef[int]]:
    return [ray.remote(task).remote(number) for number in numbers]


def test_results_come_in_order(ray_cluster: Cluster) -> None:
    assert results_of(started(2, 0, 1)) == [4, 0, 1]
    assert results_of([]) == []


def test_a_refusal_is_one_line_with_its_key(ray_cluster: Cluster) -> None:
    with pytest.raises(ConfigError) as caught:
        results_of(started(1, 3))
    assert (type(caught.value), caught.value.key) == (ConfigError, "model.checkpoint")
    assert str(caught.value) == "model.checkpoint: layer conv1: the weight is not finite"


def test_a_refusal_keeps_what_it_carries(ray_cluster: Cluster) -> None:
    with pytest.raises(InfeasibleBudgetError) as caught:
        results_of(started(4))
    assert caught.value.closest == {"macs": 0.5}


def test_a_defect_keeps_its_traceback(ray_cluster: Cluster) -> None:
    with pytest.raises(RayTaskError, match="a defect"):
        results_of(started(5))
