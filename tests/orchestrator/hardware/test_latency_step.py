"""What is timed before a search with latency limits, on a real prepared network and a made-up device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator.config.loading import check_config
from orchestrator.hardware.latency_step import time_networks, time_space
from orchestrator.hardware.run_memory import RunMemory
from orchestrator.local_step import learn_here
from orchestrator.plan import make_plan
from orchestrator.preparation import Prepared, prepare
from orchestrator.searches.closed_loop import ClosedLoop
from orchestrator.searches.contract import Problem, Search
from orchestrator.searches.registry import search_methods
from orchestrator.storage import Storage
from search_spaces.candidates import Score
from search_spaces.errors import ConfigError, InfeasibleBudgetError, MeasurementError
from search_spaces.rank_space import RankVector
from tests.orchestrator.digits_run import digits_config
from tests.orchestrator.hardware.made_up_measuring import PaddingDevice
from tests.orchestrator.searches.made_up import Pool

DEVICES = {"near": {"backend": "torch"}, "far": {"backend": "torch", "threads": 2}}


def config(checkpoint: Path, budget: Any, **search: Any) -> dict[str, Any]:
    raw = digits_config(checkpoint)
    raw["search"] = {"method": "alds", "objective": "kl", "budget": budget, **search}
    return {**raw, "devices": DEVICES, "timing": {"batch_size": 4, "calibration": 6}}


def prepared(checkpoint: Path, budget: Any, **search: Any) -> Prepared:
    return learn_here(prepare(check_config(config(checkpoint, budget, **search), "test")))


def memory(folder: Path, device: PaddingDevice) -> RunMemory:
    return RunMemory(Storage(str(folder)), device.measure_all)


def loss(ranks: RankVector) -> Score:
    """The lower a rank, the worse."""
    value = sum(0.0 if rank is None else 1.0 / (rank if isinstance(rank, int) else rank[-1]) for rank in ranks)
    return Score(ranks, {"accuracy": -value, "loss": value, "kl": value})


class TestTheSpace:
    @pytest.mark.parametrize("step", [8, 16])
    def test_offers_the_ranks_just_below_the_devices_jumps(
        self, digits_checkpoint: Path, tmp_path: Path, step: int
    ) -> None:
        timed = time_space(
            prepared(digits_checkpoint, {"latency": {"near": 0.3}}), memory(tmp_path, PaddingDevice(step))
        )
        (model,) = timed.models
        assert model.cost.step == step
        space = timed.prepared.space
        assert any(layer.ladder for layer in space.layers)
        for index, layer in enumerate(space.layers):
            highest = max((rank for rank in model.cost.timings[index] if rank is not None), default=0)
            assert all(rank % step == 0 or rank == highest or highest < step for rank in layer.offered)
            costs = [space.costs["latency@near"].of(index, rank) for rank in (*layer.offered, None)]
            assert costs == sorted(costs)
            assert layer.at(layer.full) is None

    def test_of_two_devices_offers_what_was_measured_on_both(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        budget = {"latency": {"near": 0.3, "far": 0.2}, "parameters": 0.2}
        case = prepared(digits_checkpoint, budget)
        timed = time_space(case, memory(tmp_path, PaddingDevice()))
        assert [model.device for model in timed.models] == ["near", "far"]
        assert [cost for cost, _ in timed.prepared.problem.budget.targets] == [
            "latency@near",
            "latency@far",
            "parameters",
        ]
        for layer, before in zip(timed.prepared.space.layers, case.space.layers, strict=True):
            assert set(layer.offered) <= set(before.offered)

    def test_of_sliced_layers_goes_by_their_errors(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        case = prepared(digits_checkpoint, {"latency": {"near": 0.3}}, scheme="sliced_svd")
        timed = time_space(case, memory(tmp_path, PaddingDevice()))
        assert any(layer.ladder for layer in timed.prepared.space.layers)
        for layer, before in zip(timed.prepared.space.layers, case.space.layers, strict=True):
            assert set(layer.offered) <= set(before.offered)

    def test_a_rank_that_is_noisy_is_not_offered(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        budget = {"latency": {"near": 0.3}}
        device = PaddingDevice(failing=["conv 16>64 1x1", "conv 32>16 3x3 padding 1x1; conv 16>"])
        timed = time_space(prepared(digits_checkpoint, budget), memory(tmp_path, device))
        offered = [rank for layer in timed.prepared.space.layers for rank in layer.offered]
        without = time_space(prepared(digits_checkpoint, budget), memory(tmp_path / "other", PaddingDevice()))
        assert len(offered) < sum(len(layer.offered) for layer in without.prepared.space.layers)


class TestTheBudget:
    def test_a_ratio_is_one_of_the_measured_dense_network(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        (model,) = time_space(
            prepared(digits_checkpoint, {"throughput": {"near": "1.25x"}}), memory(tmp_path, PaddingDevice())
        ).models
        assert model.limit_ms == pytest.approx(model.dense_ms / 1.25)

    def test_a_throughput_is_a_latency_of_a_batch(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        case = prepared(digits_checkpoint, {"latency": {"near": 0.3}})
        (known,) = time_space(case, memory(tmp_path, PaddingDevice())).models
        rate = 4 / (0.8 * known.dense_ms) * 1e3
        (model,) = time_space(
            prepared(digits_checkpoint, {"throughput": {"near": f"{rate}/s"}}), memory(tmp_path, PaddingDevice())
        ).models
        assert model.limit_ms == pytest.approx(0.8 * known.dense_ms)

    def test_out_of_reach_says_the_closest_in_ms(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        case = prepared(digits_checkpoint, {"latency": {"near": "1 us"}})
        with pytest.raises(
            InfeasibleBudgetError,
            match=r"^search\.budget\.latency@near: no rank vector meets 0\.001 ms; the closest that can be reached is ",
        ):
            time_space(case, memory(tmp_path, PaddingDevice()))

    def test_limits_that_exclude_each_other_are_named(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        # Two layers are faster factorised on one device, and dense on the other.
        found = memory(tmp_path, PaddingDevice(slow=("far", ">32 1x1")))
        loose = prepared(digits_checkpoint, {"latency": {"near": 0.01, "far": 0.01}})
        space = time_space(loose, found).prepared.space
        costs = {device: f"latency@{device}" for device in ("near", "far")}
        assert space.cheapest(costs["near"]) != space.cheapest(costs["far"])
        least = {device: space.network_cost(cost, space.cheapest(cost)) for device, cost in costs.items()}
        limits = {"latency": {device: f"{1.0001 * ms} ms" for device, ms in least.items()}}
        with pytest.raises(InfeasibleBudgetError, match="can each be met but not together"):
            time_space(prepared(digits_checkpoint, limits), found)

    @pytest.mark.parametrize(
        ("budget", "message"),
        [
            ({"latency": {"orin": "1 ms"}}, r"search\.budget\.latency@orin: unknown device 'orin'.*far, near"),
            ({"latencies": {"near": 1}}, r"search\.budget: latencies = \{'near': 1\} is no number"),
            ({"latencyy": 0.5}, r"search\.budget\.latencyy: unknown cost; did you mean 'latency'\?"),
        ],
    )
    def test_mistakes_are_found_before_anything_starts(
        self, digits_checkpoint: Path, budget: Any, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"^{message}"):
            prepare(check_config(config(digits_checkpoint, budget), "test"))

    def test_a_plan_says_that_it_times_nothing(self, digits_checkpoint: Path) -> None:
        case = prepare(check_config(config(digits_checkpoint, {"latency": {"near": 0.3}}), "test"))
        with pytest.raises(ConfigError, match=r"^search\.budget\.latency@near: a plan times no device; [^\n]+$"):
            make_plan(case)


class TestFailures:
    def test_nothing_measured_ends_it_at_once(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        device = PaddingDevice(failing=[""])
        with pytest.raises(MeasurementError, match=r"^near: nothing could be measured: noisy: too many blocks"):
            time_space(prepared(digits_checkpoint, {"latency": {"near": 0.3}}), memory(tmp_path, device))
        assert len(device.asked) < 20

    def test_a_dense_layer_that_cannot_be_measured(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        device = PaddingDevice(failing=["1x1: linear 64>10; bias"])
        with pytest.raises(MeasurementError, match=r"^near: the dense layer linear could not be measured"):
            time_space(prepared(digits_checkpoint, {"latency": {"near": 0.3}}), memory(tmp_path, device))

    def test_networks_that_cannot_be_measured(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        device = PaddingDevice(failing=["1x8x8: "])
        with pytest.raises(
            MeasurementError, match=r"^near: 0 of \d+ whole networks could be measured, not the dense one"
        ):
            time_space(prepared(digits_checkpoint, {"latency": {"near": 0.3}}), memory(tmp_path, device))


class TestTheMemory:
    def test_nothing_is_measured_twice_in_a_run(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        case, device = prepared(digits_checkpoint, {"latency": {"near": 0.3}}), PaddingDevice()
        first = time_space(case, memory(tmp_path, device))
        assert len({(name, one) for name, one in device.asked}) == len(device.asked)
        # A device that says otherwise by now changes nothing for a resumed run.
        again = PaddingDevice(step=4)
        second = time_space(case, memory(tmp_path, again))
        assert again.asked == []
        assert second.prepared.space.layers == first.prepared.space.layers
        assert second.models == first.models

    def test_is_readable_without_rankray(self, digits_checkpoint: Path, tmp_path: Path) -> None:
        time_space(prepared(digits_checkpoint, {"latency": {"near": 0.3}}), memory(tmp_path, PaddingDevice()))
        frame = pd.read_parquet(tmp_path / "measurements")
        assert set(frame["kind"]) == {"layer", "network"}
        assert frame["median_ms"].gt(0).all()

    def test_a_broken_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "measurements").mkdir()
        (tmp_path / "measurements" / "used-000000.parquet").write_bytes(b"no Parquet")
        with pytest.raises(ConfigError, match=r"used-000000\.parquet: is no readable Parquet file: [^\n]+$"):
            memory(tmp_path, PaddingDevice())


@pytest.mark.parametrize("method", ["mbs", "alds", "uniform", "layerwise"])
def test_a_whole_search_ends_within_the_limit(digits_checkpoint: Path, tmp_path: Path, method: str) -> None:
    own = {"settings": [{"step": 8, "beam_size": 2}]} if method == "mbs" else {}
    case = prepared(digits_checkpoint, {"latency": {"near": 0.3}}, method=method, **own)
    found = memory(tmp_path, PaddingDevice())
    timed = time_space(case, found)

    def start(problem: Problem) -> Search:
        search: Search = search_methods().get(method, "").start(case.config.search, problem, None)
        return search

    search = ClosedLoop(
        timed.prepared.problem,
        timed.static,
        timed.models,
        start,
        lambda device, vectors: time_networks(timed.prepared, device, vectors, found),
    )
    Pool(loss).run(search)
    assert search.best is not None
    assert search.best.in_window
    record = search.record(search.best.ranks)["near"]
    assert record["measured_ms"] <= record["limit_ms"] == pytest.approx(0.7 * record["dense_ms"])
    assert record["calibration"]["error_median"] < 0.03
