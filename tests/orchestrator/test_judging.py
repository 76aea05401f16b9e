"""What a network scores: plain passes, in whatever memory layout its forward takes; of the dense one, once for all."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.config.loading import check_config
from orchestrator.judging import network_scores
from orchestrator.preparation import Prepared, prepare
from tests.orchestrator.digits_run import digits_config
from workers.batch import accuracy
from workers.scorer import judge_in_slices
from workers.splits import batches


class CountsItsPasses(nn.Module):
    """A network as it is, and how often it ran."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.passes = network, 0

    def forward(self, x: torch.Tensor) -> Any:
        self.passes += 1
        return self.network(x)


@pytest.fixture(scope="module")
def coloured() -> Prepared:
    config = digits_config(Path("none"))
    config["model"] = {"build": "tests.orchestrator.odd_networks:ViewsItsImages"}
    for name in ("train", "test"):
        config["data"][name] = {"dataset": "tests.orchestrator.odd_networks:Coloured", "arguments": {"split": name}}
    return prepare(check_config(config, "test"))


def convolutional() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()


@pytest.mark.parametrize("laid_out", ["freely", "as it was"])
def test_scores_are_those_of_plain_passes(coloured: Prepared, laid_out: str) -> None:
    network = convolutional() if laid_out == "freely" else copy.deepcopy(coloured.model)
    found = network_scores(coloured, network)
    assert coloured.test is not None
    for name, parts in (("validation", [coloured.validation]), ("test", list(batches(coloured.test, 1000)))):
        expected = judge_in_slices(network, parts, accuracy)
        assert found[name] == pytest.approx({key: expected[key] for key in ("accuracy", "loss")}, rel=1e-5)


def test_searches_that_share_the_dense_network_judge_it_on_the_test_data_once(coloured: Prepared) -> None:
    dense = CountsItsPasses(coloured.model)
    one = replace(coloured, model=dense)
    first = network_scores(one, dense)
    once = dense.passes
    another = replace(one, validation=next(one.validation.split(32)))
    second = network_scores(another, dense)
    assert first["test"] == second["test"]
    assert first["validation"] != second["validation"]
    assert dense.passes - once == 2  # one to see what layout it takes, one for the validation batch


def test_outputs_that_are_not_finite_have_no_scores(coloured: Prepared) -> None:
    network = convolutional()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = torch.nan
    assert network_scores(coloured, network) == {"validation": None, "test": None}


def test_without_test_data_there_are_none_on_them(coloured: Prepared) -> None:
    assert set(network_scores(replace(coloured, test=None), convolutional())) == {"validation"}
