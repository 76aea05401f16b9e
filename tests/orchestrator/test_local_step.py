"""The local step: the same on Ray and in this process, and what a user's mistake makes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn

from orchestrator.config.loading import check_config
from orchestrator.local_step import factorising, learn, learn_here
from orchestrator.plan import make_plan
from orchestrator.preparation import Prepared, prepare
from orchestrator.ray_cluster import Cluster
from orchestrator.shared import share, store_model
from search_spaces.errors import ConfigError
from search_spaces.rank_space import LayerRanks
from tests.orchestrator.digits_run import digits_config
from workers.factoriser import Factorising, factors_from, moment_from
from workers.moments import second_moments


class WithAnInfiniteWeight(nn.Sequential):
    """Its first layer has a weight of minus infinity, which the ReLU after it hides."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        with torch.no_grad():
            self[1].weight[3] = -math.inf

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images + 1)


def allocating_config(checkpoint: Path, method: str, **search: Any) -> dict[str, Any]:
    """A small search by a method that is no beam search."""
    raw = digits_config(checkpoint)
    raw["data"]["calibration_size"] = 96
    shared = {"budget": {"parameters": 0.5}, "objective": "kl", "early_stop": False}
    raw["search"] = {"method": method, **shared, **search}
    return raw


def prepared(checkpoint: Path, method: str, **search: Any) -> Prepared:
    return prepare(check_config(allocating_config(checkpoint, method, **search), "test"))


def _both(case: Prepared) -> list[tuple[LayerRanks, LayerRanks]]:
    """Every layer's ranks before and after the local step."""
    return list(zip(case.space.layers, learn_here(case).space.layers, strict=True))


def learned_on_ray(case: Prepared) -> Prepared:
    model = store_model(case)
    return learn(case, model.weights, model.skeleton).prepared


class TestLaddersAndCurves:
    @pytest.mark.parametrize(
        ("method", "search"),
        [
            ("alds", {"scheme": "sliced_svd", "norm": "weight"}),
            ("beam_around", {"scheme": "sliced_svd", "norm": "activation"}),
            ("uniform", {"scheme": "tucker2", "norm": "activation", "measure": "frobenius"}),
            ("energy", {"scheme": "spatial_svd", "norm": "activation"}),
        ],
    )
    def test_are_the_same_on_ray_and_here(
        self, ray_cluster: Cluster, digits_checkpoint: Path, method: str, search: dict[str, Any]
    ) -> None:
        case = prepared(digits_checkpoint, method, **search)
        there, here = learned_on_ray(case), learn_here(case)
        assert there.space.layers == here.space.layers
        assert there.problem.matrix_shapes == here.problem.matrix_shapes
        assert set(there.problem.curves) == set(here.problem.curves) != set()
        for measure, curves in there.problem.curves.items():
            for one, other in zip(curves, here.problem.curves[measure], strict=True):
                assert tuple(one.ranks) == tuple(other.ranks)
                # Moments are summed in another order here; the smallest errors feel it.
                assert one.errors == pytest.approx(list(other.errors), rel=1e-6, abs=1e-7)

    def test_what_the_layers_see_makes_other_errors(self, digits_checkpoint: Path) -> None:
        by_weight, by_output = (
            learn_here(prepared(digits_checkpoint, "energy", norm=norm)).problem.curves["frobenius"]
            for norm in ("weight", "activation")
        )
        assert by_weight[1].errors != by_output[1].errors

    def test_sliced_layers_offer_less_and_never_more_than_before(self, digits_checkpoint: Path) -> None:
        case = prepared(digits_checkpoint, "alds", scheme="sliced_svd")
        for before, after in _both(case):
            assert set(after.offered) <= set(before.offered)
            assert after.useful == after.full == len(after.offered) > 0
        # One channel in, or a linear layer: one k, whose errors fall with j; nothing to leave out.
        fewer = [len(after.offered) < len(before.offered) for before, after in _both(case)]
        assert fewer == [False, True, True, True, True, False]

    def test_a_linear_layer_has_one_slice(self, digits_checkpoint: Path) -> None:
        linear = learn_here(prepared(digits_checkpoint, "alds", scheme="sliced_svd")).space.layers[-1]
        assert linear.name == "linear"
        assert {rank[0] for rank in linear.offered} == {1}  # type: ignore[index]

    def test_plain_ranks_of_a_beam_search_need_no_curves(self, digits_checkpoint: Path) -> None:
        case = prepare(check_config(digits_config(digits_checkpoint), "test"))
        assert learn_here(case) is case

    def test_sliced_ranks_of_a_beam_search_are_ladders_by_its_measure(self, digits_checkpoint: Path) -> None:
        found = []
        for measure in ("max_slice", "frobenius"):
            raw = digits_config(digits_checkpoint, scheme="sliced_svd", measure=measure)
            case = learn_here(prepare(check_config(raw, "test")))
            assert set(case.problem.curves) == {measure}
            found.append(case.space.layers)
        assert found[0] != found[1]


class TestMoments:
    @pytest.mark.parametrize("search", [{"norm": "activation"}, {"last_stage": "fitted"}, {"bias": "corrected"}])
    def test_are_gathered_where_they_are_needed(
        self, ray_cluster: Cluster, digits_checkpoint: Path, search: dict[str, Any]
    ) -> None:
        case = prepared(digits_checkpoint, "uniform", **search)
        model = store_model(case)
        learned = learn(case, model.weights, model.skeleton)
        assert case.calibration is not None
        expected = second_moments(case.model, case.found.layers, case.calibration)
        for layer, reference in zip(case.found.layers, learned.moments, strict=True):
            found = moment_from(ray.get(reference))
            assert found.patches == expected[layer.name].patches
            # Activations are float32, and torch adds them up otherwise with other numbers of threads.
            torch.testing.assert_close(found.second, expected[layer.name].second, rtol=1e-5, atol=1e-6)

    def test_are_not_where_they_are_not(self, ray_cluster: Cluster, digits_checkpoint: Path) -> None:
        case = prepared(digits_checkpoint, "uniform")
        model = store_model(case)
        assert learn(case, model.weights, model.skeleton).moments == ()
        assert (case.calibration, factorising(case)) == (None, Factorising())

    def test_every_offered_rank_is_fitted_and_corrected(self, ray_cluster: Cluster, digits_checkpoint: Path) -> None:
        search = {"scheme": "sliced_svd", "last_stage": "fitted", "bias": "corrected"}
        case = prepared(digits_checkpoint, "alds", **search)
        model = store_model(case)
        learned = model.learn(case)
        _, references = share(case, model, learned)
        for ranks, reference in zip(learned.prepared.space.layers, references, strict=True):
            factors = factors_from(ray.get(reference))
            assert set(factors.last_stages) == set(factors.bias_corrections) == set(ranks.offered)


class TestBadWeights:
    @staticmethod
    def case(**search: Any) -> Prepared:
        raw = allocating_config(Path("none"), "uniform", **search)
        raw["model"] = {"build": "tests.orchestrator.test_local_step:WithAnInfiniteWeight"}
        return prepare(check_config(raw, "test"))

    def test_are_named_in_one_line_here(self) -> None:
        with pytest.raises(ConfigError, match=r"^model\.checkpoint: layer 1: [^\n]+$"):
            learn_here(self.case())

    def test_are_named_in_one_line_on_ray(self, ray_cluster: Cluster) -> None:
        with pytest.raises(ConfigError, match=r"^model\.checkpoint: layer 1: [^\n]+$") as caught:
            learned_on_ray(self.case())
        assert caught.value.key == "model.checkpoint"

    def test_are_named_in_one_line_by_who_factorises(self, ray_cluster: Cluster) -> None:
        raw = digits_config(Path("none"))
        raw["model"] = {"build": "tests.orchestrator.test_local_step:WithAnInfiniteWeight"}
        case = prepare(check_config(raw, "test"))
        with pytest.raises(ConfigError, match=r"^model\.checkpoint: layer 1: [^\n]+$"):
            share(case)


class TestAPlan:
    """`rankray plan` takes the local step by itself."""

    @pytest.mark.parametrize(
        ("method", "search"),
        [
            ("alds", {"scheme": "sliced_svd", "last_stage": "fitted", "batch_norm": "reestimated"}),
            ("beam_around", {"scheme": "sliced_svd", "norm": "activation"}),
            ("layerwise", {"scheme": "tucker2", "norm": "activation", "ratios": 3, "allocations": 2}),
            ("greedy_ratio", {"scheme": "spatial_svd", "last_stage": "fitted", "bias": "corrected", "ratios": 3}),
        ],
    )
    def test_starts_no_ray(
        self, digits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, method: str, search: dict[str, Any]
    ) -> None:
        def used(*_: object, **__: object) -> None:
            raise AssertionError("Ray was used")

        for name in ("init", "put", "get", "remote"):
            monkeypatch.setattr(ray, name, used)
        plan = make_plan(prepared(digits_checkpoint, method, **search))
        assert plan.complete
        assert plan.candidates >= 1
        assert plan.seconds_per_candidate > 0

    def test_counts_what_alds_scores(self, digits_checkpoint: Path) -> None:
        search = {"scheme": "sliced_svd", "measures": ["frobenius"], "slice_limits": [None]}
        assert make_plan(prepared(digits_checkpoint, "alds", **search)).candidates == 1
