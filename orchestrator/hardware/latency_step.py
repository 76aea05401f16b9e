"""The part of the local step that times: each device's rank step, its layers, and the networks that calibrate them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from orchestrator.hardware.run_memory import RunMemory, timing_of
from orchestrator.preparation import Prepared, static_limits
from orchestrator.searches.allocation.capacities import capacity
from orchestrator.searches.allocation.feasibility import require_feasible
from orchestrator.searches.allocation.options import layer_options
from orchestrator.searches.closed_loop import bound_problem
from orchestrator.searches.contract import Problem
from orchestrator.searches.latency_model import LatencyModel, Network
from search_spaces.budgets import Budget
from search_spaces.calibration import calibration_networks
from search_spaces.error_curves import ErrorCurve
from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.granularity import rank_step, ranks_to_measure, sweep_ranks
from search_spaces.ladders import with_latency_ladders
from search_spaces.latency import LatencyCost, Timing, limited_device
from search_spaces.layers import Layer
from search_spaces.rank_space import Rank, RankVector
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.registry import schemes
from workers.timing.contract import Measurement
from workers.timing.workloads import LayerWorkload, NetworkWorkload, layer_workloads, network_workload

__all__ = ["Timed", "limited_devices", "time_networks", "time_space", "whole_network"]

_LEAST_NETWORKS = 3
"""Measured networks without which a slope, an intercept and their error are guesses."""


_TWO_FACTORS = "channel_svd"
"""A scheme whose work is linear in the rank."""


@dataclass(frozen=True)
class Timed:
    """What was learned of the limited devices.

    Attributes:
        prepared: its space offers the ranks just below the devices' jumps, at latencies as costs; its budget is bound.
        models: one per limited device.
        static: the limits on costs that are not measured.
    """

    prepared: Prepared
    models: tuple[LatencyModel, ...]
    static: Budget


def limited_devices(prepared: Prepared) -> list[str]:
    """The devices whose latency is limited."""
    named = [limited_device(limit.cost) for limit in prepared.config.limits]
    return [name for name in named if name is not None]


def time_space(prepared: Prepared, memory: RunMemory) -> Timed:
    """Times what a search with latency limits needs to know, before it scores anything.

    Args:
        prepared: after the rest of the local step.
        memory: measures.

    Raises:
        ConfigError: the network cannot be timed.
        InfeasibleBudgetError: no rank vector meets the limits.
        MeasurementError: a device does not answer, or too little could be measured on it.
    """
    devices, timing = limited_devices(prepared), prepared.config.timing
    steps = _rank_steps(prepared, devices, memory)
    costs = _layer_costs(prepared, steps, memory)
    curves = next(iter(prepared.problem.curves.values()), None)
    space = with_latency_ladders(prepared.space, costs, curves)
    problem = replace(prepared.problem, space=space)
    prepared = replace(prepared, problem=problem)
    networks = calibration_networks(space, timing.calibration, prepared.config.search.seed)
    measured = {name: time_networks(prepared, name, networks, memory) for name in devices}
    memory.keep()
    models = tuple(_model(prepared, cost, networks, measured[cost.device]) for cost in costs)
    static = Budget.of(static_limits(prepared.config), space)
    for model in models:
        model.check_reach(space)
    bound = bound_problem(problem, static, models)
    _check_together(bound)
    return Timed(replace(prepared, problem=bound), models, static)


def time_networks(
    prepared: Prepared, device: str, vectors: Sequence[RankVector], memory: RunMemory
) -> list[Timing | None]:
    """Times whole networks at rank vectors, with random weights in their factorised layers.

    Raises:
        ConfigError: the network's inputs are no single tensor.
        MeasurementError: the device does not answer.
    """
    workloads = [whole_network(prepared, ranks) for ranks in vectors]
    return [timing_of(one) for one in memory.measure({device: workloads})[device]]


def whole_network(prepared: Prepared, ranks: RankVector) -> NetworkWorkload:
    """The network at a rank vector as it is timed.

    Raises:
        ConfigError: its inputs are no single tensor.
    """
    inputs = prepared.validation.example().inputs
    if isinstance(inputs, dict):
        raise ConfigError(
            "search.budget", "the model takes a dict of tensors, which devices are not timed with; limit macs instead"
        )
    batch_size, layers = prepared.config.timing.batch_size, prepared.found.layers
    return network_workload(prepared.model, layers, prepared.schemes, ranks, inputs.shape[1:], batch_size)


def _rank_steps(prepared: Prepared, devices: Sequence[str], memory: RunMemory) -> dict[str, int]:
    """Every device's rank step, by a sweep of the layer that shows most for the least work."""
    batch_size = prepared.config.timing.batch_size
    sweeps = [_sweep(*one, batch_size) for one in zip(prepared.found.layers, prepared.schemes, strict=True)]
    usable = [sweep for sweep, ranks in zip(sweeps, prepared.space.layers, strict=True) if sweep and ranks.offered]
    if not usable:
        return dict.fromkeys(devices, 1)
    sweep = min(usable, key=lambda one: (-len(one), sum(workload.macs for workload in one.values())))
    found = memory.measure({device: list(sweep.values()) for device in devices})
    return {device: _step_of(device, list(sweep), found[device]) for device in devices}


def _sweep(layer: Layer, scheme: Scheme, batch_size: int) -> dict[int, LayerWorkload]:
    """What times the layer's first call at the ranks of a sweep; of sliced ranks those with one slice.

    A square core, which Tucker-2 has between its factors, hides the steps: two factors alone show them.
    """
    found = _at_sweep_ranks(layer, scheme, batch_size)
    slopes = {(high.macs - low.macs) / (above - below) for (below, low), (above, high) in pairwise(found.items())}
    if len(slopes) < 2:
        return found
    return _at_sweep_ranks(layer, schemes().get(_TWO_FACTORS, "search.scheme"), batch_size)


def _at_sweep_ranks(layer: Layer, scheme: Scheme, batch_size: int) -> dict[int, LayerWorkload]:
    offered = scheme.ranks(layer)
    one_slice = {rank if isinstance(rank, int) else rank[-1]: rank for rank in offered if _slices(rank) == 1}
    full = max(one_slice, default=0)
    ranks = [rank for rank in sweep_ranks(full) if rank in one_slice]
    return {rank: layer_workloads(layer, scheme.name, one_slice[rank], batch_size)[0] for rank in ranks if layer.calls}


def _slices(rank: Rank) -> int:
    return 1 if isinstance(rank, int) else rank[0]


def _step_of(device: str, ranks: Sequence[int], measurements: Sequence[Measurement]) -> int:
    timings = [timing_of(one) for one in measurements]
    known = [(rank, timing) for rank, timing in zip(ranks, timings, strict=True) if timing is not None]
    if not known:  # before hundreds of others fail alike
        first = measurements[0]
        raise MeasurementError(device, f"nothing could be measured: {first.status}: {first.reason}")
    return rank_step([rank for rank, _ in known], [timing for _, timing in known])


def _layer_costs(prepared: Prepared, steps: Mapping[str, int], memory: RunMemory) -> list[LatencyCost]:
    """Every device's layers: dense, and at the ranks that are worth it on any of the devices."""
    batch_size, most = prepared.config.timing.batch_size, prepared.config.timing.ranks_per_layer
    subjects = []
    for layer, scheme, ranks in zip(prepared.found.layers, prepared.schemes, prepared.space.layers, strict=True):
        worth = dict.fromkeys(rank for step in steps.values() for rank in ranks_to_measure(ranks.offered, step, most))
        subjects.append({rank: layer_workloads(layer, scheme.name, rank, batch_size) for rank in (None, *worth)})
    workloads = list(dict.fromkeys(one for layer in subjects for calls in layer.values() for one in calls))
    found = memory.measure({device: workloads for device in steps})
    names = [layer.name for layer in prepared.found.layers]
    costs = []
    for device, step in steps.items():
        timings = [timing_of(one) for one in found[device]]
        table: dict[Hashable, Timing] = {
            one: timing for one, timing in zip(workloads, timings, strict=True) if timing is not None
        }
        costs.append(replace(LatencyCost.of_table(device, table, subjects, names), step=step))
    return costs


def _model(
    prepared: Prepared, cost: LatencyCost, vectors: Sequence[RankVector], timings: Sequence[Timing | None]
) -> LatencyModel:
    """A device's first calibration, and its limit in ms."""
    networks = {
        ranks: Network(timing, "calibration")
        for ranks, timing in zip(vectors, timings, strict=True)
        if timing is not None
    }
    dense = networks.get(prepared.space.dense)
    if dense is None or len(networks) < min(_LEAST_NETWORKS, len(vectors)):
        raise MeasurementError(
            cost.device,
            f"{len(networks)} of {len(vectors)} whole networks could be measured"
            f"{'' if dense else ', not the dense one'}; see measurements/",
        )
    limit = next(one for one in prepared.config.limits if one.cost == cost.name)
    limit_ms = limit.value if limit.kind == "absolute" else (1.0 - limit.value) * dense.timing.ms
    return LatencyModel(cost, limit_ms, networks, limit_ms)


def _check_together(problem: Problem) -> None:
    """Makes sure that limits which can be met each can be met together.

    Raises:
        InfeasibleBudgetError: they cannot; two that exclude each other are named.
    """
    flat = [ErrorCurve(layer.offered, [0.0] * len(layer.offered)) for layer in problem.space.layers]
    options = layer_options(problem.space, flat, [(1, 1)] * len(flat))
    require_feasible(options, capacity(problem.space, problem.budget))
