"""Held-out error of the calibrated prediction, for networks that searches propose.

As in a run: the layers are timed, and some whole networks, to which slope and intercept are fitted. Then searches are
given several latency limits, and what they propose is measured as well: minimax (ALDS), uniform, the two best by
integer programming, and a beam around ALDS. The beam's scores are the sum of the layers' squared errors, because it is
times that are in question here, not outputs.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from _hardware_device import ANYHOW, cores, on_core, rank_correlation, timed
from _hardware_networks import config, prepared
from _record import show

from orchestrator.hardware.latency_step import Timed, time_networks, time_space
from orchestrator.hardware.run_memory import RunMemory
from orchestrator.local_step import learn_here
from orchestrator.searches.allocation.additive import near_optimal
from orchestrator.searches.allocation.capacities import capacity
from orchestrator.searches.allocation.minimax import minimax
from orchestrator.searches.allocation.options import Allocation, layer_options
from orchestrator.searches.allocation.uniform import uniform
from orchestrator.searches.beam_around import AroundSetting, BeamAround
from orchestrator.searches.closed_loop import bound_problem
from orchestrator.searches.contract import Problem
from orchestrator.storage import Storage
from search_spaces.calibration import Calibration
from search_spaces.candidates import Score
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.rank_space import RankVector
from workers.timing.contract import Device, Measurement, Workload

__all__ = ["CASES", "QUICK", "PredictionSize", "measure", "show_found"]

CASES: Mapping[str, tuple[str, int]] = {
    "resnet20-8": ("resnet20", 8),
    "resnet20-1": ("resnet20", 1),
    "resnet18-1": ("resnet18", 1),
    "small-1": ("small", 1),
}
"""Network and batch size."""


@dataclass(frozen=True)
class PredictionSize:
    """How much is measured.

    Attributes:
        cases: names of `CASES`.
        backend: eager torch in the short form, because it builds at once.
        calibration: networks that are fitted to.
        held_out: other networks, proposed by searches.
        limits: between the fastest network that is predicted (0) and the dense one (1).
        ranks_per_layer: timed at most.
        rules: of the protocol that differ from a run's own.
    """

    cases: tuple[str, ...] = ("resnet20-8", "resnet20-1", "resnet18-1")
    backend: str = "onnxruntime"
    calibration: int = 12
    held_out: int = 12
    limits: tuple[float, ...] = (0.15, 0.3, 0.5, 0.75)
    ranks_per_layer: int = 32
    rules: Mapping[str, float] | None = None


QUICK = PredictionSize(
    cases=("small-1",),
    backend="torch",
    calibration=4,
    held_out=4,
    limits=(0.3, 0.6),
    ranks_per_layer=4,
    rules=ANYHOW,
)


def measure(
    size: PredictionSize,
    keep: Callable[[dict[str, Any]], None],
    former: Mapping[str, Any],
    device: Device | None = None,
) -> dict[str, Any]:
    """Every case that is asked for; the others stay as a former run left them."""
    found: dict[str, Any] = {"cases": dict(former.get("cases", {}))}
    for case in size.cases:
        found["cases"][case] = _case(case, size, device or on_core(cores()[0], size.backend))
        keep(found)
    return found


def _case(case: str, size: PredictionSize, device: Device) -> dict[str, Any]:
    network, batch_size = CASES[case]
    raw = config(network, {"method": "alds", "budget": {"throughput": {device.name: "1.01x"}}}, count=2)
    fields = {name: value for name, value in asdict(device).items() if name != "name"}
    raw["devices"] = {device.name: fields}
    raw["timing"] = {
        "batch_size": batch_size,
        "calibration": size.calibration,
        "ranks_per_layer": size.ranks_per_layer,
    }

    def measure_all(wanted: Mapping[str, Sequence[Workload]]) -> dict[str, list[Measurement]]:
        workloads = wanted[device.name]
        final = timed(device, workloads, size.rules or {}).final
        return {device.name: [final[one] for one in workloads]}

    with tempfile.TemporaryDirectory() as folder:
        memory = RunMemory(Storage(folder), measure_all)
        known = time_space(learn_here(prepared(raw)), memory)
        proposed = _proposed(known, size)
        times = time_networks(known.prepared, device.name, list(proposed), memory)
    measured = {ranks: one.ms for ranks, one in zip(proposed, times, strict=True) if one is not None}
    return _judged(known, proposed, measured)


def _proposed(known: Timed, size: PredictionSize) -> dict[RankVector, str]:
    """Rank vectors that no calibration network has, each with the search that proposed it first."""
    model, space = known.models[0], known.prepared.space
    fastest = model.predicted_ms(space.cheapest(model.cost.name))
    found: dict[RankVector, str] = {}
    for share in size.limits:
        aim = fastest + share * (model.predicted_ms(space.dense) - fastest)
        bound = bound_problem(known.prepared.problem, known.static, [replace(model, limit_ms=aim, aim_ms=aim)])
        for name, ranks in _searches(bound):
            if ranks not in model.networks:
                found.setdefault(ranks, f"{name} at {aim:.4g} ms")
    drawn = random.Random(0).sample(list(found), min(size.held_out, len(found)))
    return {ranks: found[ranks] for ranks in drawn}


def _searches(problem: Problem) -> Iterator[tuple[str, RankVector]]:
    """What each search proposes within a problem's budget."""
    capacities = capacity(problem.space, problem.budget)
    slices, frobenius = (
        layer_options(problem.space, problem.curves[measure], problem.matrix_shapes)
        for measure in ("max_slice", "frobenius")
    )
    start = minimax(slices, capacities)
    yield "alds", start.ranks
    with suppress(InfeasibleBudgetError):  # no one share reaches so far
        yield "uniform", uniform(slices, capacities).ranks
    for place, one in enumerate(near_optimal(frobenius, capacities, 2, apart=max(1, len(frobenius) // 10))):
        yield f"integer program, {place}", one.ranks
    yield "beam", _beam(problem, start)


def _beam(problem: Problem, start: Allocation) -> RankVector:
    """A beam around an allocation, by the sum of the layers' squared errors."""
    errors = [dict(zip(one.ranks, one.errors, strict=True)) for one in problem.curves["frobenius"]]

    def score(ranks: RankVector) -> Score:
        lost = sum(0.0 if rank is None else float(layer[rank]) ** 2 for layer, rank in zip(errors, ranks, strict=True))
        return Score(ranks, {"accuracy": 0.0, "loss": lost, "kl": lost})

    search = BeamAround(problem, {"alds": start}, AroundSetting(rounds=2))
    while not search.done:
        search.tell([score(one.ranks) for one in search.ask()])
    assert search.best is not None
    return search.best.ranks


def _judged(known: Timed, proposed: Mapping[RankVector, str], measured: Mapping[RankVector, float]) -> dict[str, Any]:
    """How well each way predicts the held-out networks."""
    model, space = known.models[0], known.prepared.space
    by_macs = Calibration.fit(
        [space.network_cost("macs", ranks) for ranks in model.networks],
        [one.timing.ms for one in model.networks.values()],
    )
    ways: dict[str, Callable[[RankVector], float]] = {
        "calibrated": model.predicted_ms,
        "raw_sum": model.cost.sum_ms,
        "macs": lambda ranks: by_macs.predict(space.network_cost("macs", ranks)),
    }
    return {
        "dense_ms": model.dense_ms,
        "fastest_ms": min([*measured.values(), *(one.timing.ms for one in model.networks.values())]),
        "rank_step": model.cost.step,
        "ranks_offered": sum(len(layer.offered) for layer in space.layers),
        "calibration": model.calibration.record(),
        "proposed": len(proposed),
        "measured": len(measured),
        "held_out": {name: _errors(way, measured) for name, way in ways.items()},
        "networks": [
            {
                "search": proposed[ranks],
                "measured_ms": ms,
                "predicted_ms": model.predicted_ms(ranks),
                "sum_ms": model.cost.sum_ms(ranks),
                "macs": space.network_cost("macs", ranks),
            }
            for ranks, ms in measured.items()
        ],
    }


def _errors(predict: Callable[[RankVector], float], measured: Mapping[RankVector, float]) -> dict[str, Any]:
    predictions = [predict(ranks) for ranks in measured]
    off = [abs(one / ms - 1.0) for one, ms in zip(predictions, measured.values(), strict=True)]
    return {
        "error_median": statistics.median(off) if off else None,
        "error_max": max(off, default=None),
        "spearman": rank_correlation(predictions, list(measured.values())),
    }


def show_found(found: Mapping[str, Any]) -> None:
    """Prints every case's errors on the held-out networks."""
    rows = []
    for case, one in found["cases"].items():
        cells = [f"{it['error_median']:.1%} ({it['error_max']:.1%})" for it in one["held_out"].values()]
        ranks = [_number(it["spearman"]) for it in one["held_out"].values()]
        span = f"{one['fastest_ms']:.4g} to {one['dense_ms']:.4g}"
        rows.append([case, span, f"{one['measured']} of {one['proposed']}", *cells, " / ".join(ranks)])
    ways = ["calibrated", "raw sum", "fitted on MACs"]
    show(
        "Held-out error, median (largest); the goal is below 3 % (median), Spearman above 0.95",
        ["network-batch", "ms", "networks", *ways, "Spearman of these"],
        rows,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
