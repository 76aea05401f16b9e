"""The local step: what is learned of every layer by itself before a search starts (moments, error curves, ladders)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from orchestrator.preparation import Prepared, static_limits
from orchestrator.searches.contract import Problem
from orchestrator.searches.registry import search_methods
from search_spaces.error_curves import ErrorCurve
from search_spaces.ladders import Frontier, with_ladders
from workers.curves import curves_in_parallel, curves_of
from workers.evaluator import batch_to_tensors
from workers.factoriser import Factorising, stored_moment
from workers.moment_tasks import gather_moments
from workers.moments import second_moments
from workers.shared_tensors import pack

__all__ = ["Learned", "factorising", "learn", "learn_here", "learn_together"]

_Curves = Sequence[Mapping[str, ErrorCurve]]


@dataclass(frozen=True)
class Learned:
    """What the local step gives.

    Attributes:
        prepared: with a problem whose ladders and curves are known.
        moments: by layer, references to stored moments; empty where none are needed.
    """

    prepared: Prepared
    moments: Sequence[ray.ObjectRef[Any]] = ()


def learn(prepared: Prepared, weights: ray.ObjectRef[Any], skeleton: ray.ObjectRef[Any]) -> Learned:
    """Takes the local step on the cluster, one task per layer or slice of the calibration batch.

    Raises:
        ConfigError: a layer's weight or what it sees is not finite.
    """
    return learn_together([prepared], weights, skeleton)[0]


def learn_together(
    group: Sequence[Prepared], weights: ray.ObjectRef[Any], skeleton: ray.ObjectRef[Any]
) -> list[Learned]:
    """Takes the local step once for searches that factorise the same layers in the same way.

    Raises:
        ConfigError: a layer's weight or what it sees is not finite.
    """
    prepared = group[0]
    search, layers = prepared.config.search, prepared.found.layers
    moments: Sequence[ray.ObjectRef[Any]] = ()
    if search.needs_moments:
        assert prepared.calibration is not None
        batch = ray.put(pack(batch_to_tensors(prepared.calibration)))
        gathered = gather_moments(layers, skeleton, weights, batch, len(prepared.calibration))
        moments = [ray.put(stored_moment(gathered.pop(layer.name))) for layer in layers]
    wanted = [_measures(one) for one in group]
    measures = list(dict.fromkeys(measure for own in wanted for measure in own))
    if not measures:
        return [Learned(one, moments) for one in group]
    seen = moments if search.norm == "activation" else ()
    names = [scheme.name for scheme in prepared.schemes]
    found = curves_in_parallel(layers, names, measures, weights, seen)
    learned = []
    for one, own in zip(group, wanted, strict=True):
        curves = [{measure: layer[measure] for measure in own} for layer in found]
        learned.append(Learned(_with_curves(one, curves) if own else one, moments))
    return learned


def learn_here(prepared: Prepared) -> Prepared:
    """Takes the local step in this process; for a plan, which starts nothing on a cluster."""
    measures = _measures(prepared)
    if not measures:
        return prepared
    search, layers = prepared.config.search, prepared.found.layers
    moments = {}
    if search.norm == "activation":
        assert prepared.calibration is not None
        moments = second_moments(prepared.model, layers, prepared.calibration)
    return _with_curves(
        prepared,
        [
            curves_of(
                layer,
                scheme.name,
                prepared.model.get_submodule(layer.name).get_parameter("weight"),
                measures,
                moments.get(layer.name),
            )
            for layer, scheme in zip(layers, prepared.schemes, strict=True)
        ],
    )


def factorising(prepared: Prepared) -> Factorising:
    """How the config wants layers factorised."""
    search = prepared.config.search
    return Factorising(search.norm == "activation", search.last_stage == "fitted", search.bias == "corrected")


def _measures(prepared: Prepared) -> list[str]:
    """Those the method decides by, and that of the ladders where ranks are no plain numbers."""
    search = prepared.config.search
    wanted = list(search_methods().get(search.method, "search.method").curves(search))
    if not wanted and any(layer.ladder is not None for layer in prepared.space.layers):
        wanted = [search.measure]
    return list(dict.fromkeys(wanted))


def _with_curves(prepared: Prepared, found: _Curves) -> Prepared:
    search = prepared.config.search
    method = search_methods().get(search.method, "search.method")
    curves = {measure: [layer[measure] for layer in found] for measure in found[0]}
    frontiers = [Frontier(one, limit) for one in curves.values() for limit in method.slice_limits(search)]
    static = [limit.cost for limit in static_limits(prepared.config)] or ["macs"]
    space = with_ladders(prepared.space, frontiers, static[0])
    shapes = [scheme.matrix_shape(layer) for layer, scheme in zip(prepared.found.layers, prepared.schemes, strict=True)]
    problem: Problem = replace(prepared.problem, space=space, curves=curves, matrix_shapes=shapes)
    return replace(prepared, problem=problem)
