"""The search methods that allocate ranks from error curves: ALDS and the baselines, and a beam around any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from orchestrator.searches.allocation.additive import additive, near_optimal
from orchestrator.searches.allocation.capacities import capacity
from orchestrator.searches.allocation.energy import energy
from orchestrator.searches.allocation.energy_product import energy_product, energy_product_exact
from orchestrator.searches.allocation.feasibility import require_feasible
from orchestrator.searches.allocation.lc_rule import lc_rule
from orchestrator.searches.allocation.minimax import minimax
from orchestrator.searches.allocation.options import Allocation, FloatArray, LayerOptions, layer_options
from orchestrator.searches.allocation.score_bisection import score_bisection
from orchestrator.searches.allocation.uniform import uniform
from orchestrator.searches.allocation.vbmf import vbmf
from orchestrator.searches.beam_around import AroundSetting, BeamAround
from orchestrator.searches.contract import Problem, SearchMethod
from orchestrator.searches.layerwise import Alone, LayerwiseSearch, spread_rungs
from orchestrator.searches.objective import objective_value
from orchestrator.searches.scored_list import ScoredList
from orchestrator.searches.settings import SearchSettings
from search_spaces.error_curves import MEASURES
from search_spaces.rank_space import LayerRanks, Rank, RankVector
from search_spaces.registry import nearest

__all__ = ["ALLOCATORS", "METHODS"]

_Allocate = Callable[[list[LayerOptions], Mapping[str, float]], Allocation]

ALLOCATORS: Mapping[str, tuple[_Allocate, str | None]] = MappingProxyType(
    {
        "alds": (minimax, None),
        "uniform": (uniform, None),
        "energy": (energy, "frobenius"),
        "energy_product": (energy_product, "frobenius"),
        "energy_product_exact": (energy_product_exact, "frobenius"),
        "vbmf": (vbmf, "frobenius"),
        "lc_rule": (lc_rule, "frobenius"),
    }
)
"""Allocations by name, each with the measure that its equations are about; None is the config's `measure`."""


class ALDSSettings(SearchSettings):
    """The `search` block of ALDS.

    Attributes:
        measures: of the layers' errors; the exact allocation of each is scored, and the best kept. Those of a plain
            ALDS are `[max_slice]`.
        slice_limits: the most slices that allocations may use; each limit makes allocations of its own.
    """

    measures: tuple[str, ...] = ("max_slice", "frobenius")
    slice_limits: tuple[Annotated[int, Field(ge=1)] | None, ...] = (None, 8)

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        if not measures:
            raise ValueError(f"is empty; give some of {', '.join(MEASURES)}")
        for measure in measures:
            if measure not in MEASURES:
                raise ValueError(f"unknown measure {measure!r}{nearest(measure, list(MEASURES))}")
        return measures

    @field_validator("slice_limits")
    @classmethod
    def _some_limit(cls, limits: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if not limits:
            raise ValueError("is empty; give [null] for no limit")
        return limits


class LayerwiseSettings(SearchSettings):
    """The `search` block of methods that score every layer alone first.

    Attributes:
        ratios: N, how many of a layer's ranks are scored alone, evenly over its ladder.
        allocations: how many different near-optimal allocations are scored (`layerwise` alone).
    """

    ratios: Annotated[int, Field(ge=1)] = 8
    allocations: Annotated[int, Field(ge=1)] = 8


class AroundSettings(SearchSettings):
    """The `search` block of a beam around allocations.

    Attributes:
        around: names of allocations that it starts from; see `ALLOCATORS`.
        beam_size, moves, exchanges, rounds: see `AroundSetting`.
    """

    around: tuple[str, ...] = ("alds",)
    beam_size: Annotated[int, Field(ge=1)] = 3
    moves: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2)
    exchanges: Annotated[int, Field(ge=1)] = 24
    rounds: Annotated[int, Field(ge=1)] = 8
    objective: str = "kl"

    @field_validator("moves")
    @classmethod
    def _some_move(cls, moves: tuple[int, ...]) -> tuple[int, ...]:
        if not moves:
            raise ValueError("is empty; give numbers of rungs, such as [1, 2]")
        return moves

    @field_validator("around")
    @classmethod
    def _known_allocations(cls, around: tuple[str, ...]) -> tuple[str, ...]:
        if not around:
            raise ValueError(f"is empty; give some of {', '.join(ALLOCATORS)}")
        for name in around:
            if name not in ALLOCATORS:
                raise ValueError(f"unknown allocation {name!r}{nearest(name, list(ALLOCATORS))}")
        return around


def _options(problem: Problem, measure: str, most_slices: int | None = None) -> list[LayerOptions]:
    """What layers may become, with their errors in a measure."""
    space = problem.space
    if most_slices is not None:
        space = replace(space, layers=tuple(_with_few_slices(layer, most_slices) for layer in space.layers))
    return layer_options(space, problem.curves[measure], problem.matrix_shapes)


def _with_few_slices(layer: LayerRanks, most: int) -> LayerRanks:
    if layer.ladder is None:
        return layer
    ladder = tuple(rank for rank in layer.ladder if isinstance(rank, int) or rank[0] <= most)
    return replace(layer, full=len(ladder), useful=len(ladder), ladder=ladder)


def _capacities(problem: Problem) -> dict[str, float]:
    return capacity(problem.space, problem.budget)


def _measure_of(name: str, settings: SearchSettings) -> str:
    return ALLOCATORS[name][1] or settings.measure


def _allocation(name: str, settings: SearchSettings, problem: Problem) -> Allocation:
    return ALLOCATORS[name][0](_options(problem, _measure_of(name, settings)), _capacities(problem))


def _start_alds(settings: ALDSSettings, problem: Problem, _state: Mapping[str, Any] | None) -> ScoredList:
    allocations = {}
    for measure in settings.measures:
        for limit in settings.slice_limits:
            name = f"alds {measure}" + ("" if limit is None else f" k<={limit}")
            allocations[name] = minimax(_options(problem, measure, limit), _capacities(problem))
    return ScoredList(problem, allocations)


def _single(name: str) -> SearchMethod:
    """A method that scores one allocation."""

    def start(settings: SearchSettings, problem: Problem, _state: Mapping[str, Any] | None) -> ScoredList:
        return ScoredList(problem, {name: _allocation(name, settings, problem)})

    return SearchMethod(SearchSettings, start, lambda settings: (_measure_of(name, settings),))


def _start_layerwise(
    settings: LayerwiseSettings, problem: Problem, allocate: Callable[[Alone], Mapping[str, Allocation]]
) -> LayerwiseSearch:
    require_feasible(_only_probed(settings, problem), _capacities(problem))  # before anything is scored
    return LayerwiseSearch(problem, _probed(settings, problem), allocate)


def _probed(settings: LayerwiseSettings, problem: Problem) -> list[list[Rank]]:
    return [spread_rungs(layer.offered, settings.ratios) for layer in problem.space.layers]


def _only_probed(settings: LayerwiseSettings, problem: Problem) -> list[LayerOptions]:
    """Options that were scored alone, and dense."""
    return [
        layer.only(np.array([rank is None or rank in probed for rank in layer.ranks]))
        for layer, probed in zip(_options(problem, settings.measure), _probed(settings, problem), strict=True)
    ]


def _values(problem: Problem, options: list[LayerOptions], alone: Alone) -> list[FloatArray]:
    """The objective of every option alone."""
    return [
        np.array([objective_value(problem.objective, alone[index, rank]) for rank in layer.ranks], dtype=np.float64)
        for index, layer in enumerate(options)
    ]


def _start_greedy_ratio(
    settings: LayerwiseSettings, problem: Problem, _state: Mapping[str, Any] | None
) -> LayerwiseSearch:
    def allocate(alone: Alone) -> Mapping[str, Allocation]:
        options = _only_probed(settings, problem)
        return {
            "greedy_ratio": score_bisection(options, _capacities(problem), _values(problem, options, alone)),
        }

    return _start_layerwise(settings, problem, allocate)


def _start_additive(settings: LayerwiseSettings, problem: Problem, _state: Mapping[str, Any] | None) -> LayerwiseSearch:
    def allocate(alone: Alone) -> Mapping[str, Allocation]:
        options = _only_probed(settings, problem)
        losses = [value[-1] - value for value in _values(problem, options, alone)]
        capacities = _capacities(problem)
        found = {"layerwise": additive(options, capacities, losses)}
        for number, one in enumerate(near_optimal(options, capacities, settings.allocations, losses)):
            found[f"layerwise {number}"] = one
        return found

    return _start_layerwise(settings, problem, allocate)


def _start_around(settings: AroundSettings, problem: Problem, state: Mapping[str, Any] | None) -> BeamAround:
    starts: dict[str, Allocation] = {name: _allocation(name, settings, problem) for name in settings.around}
    setting = AroundSetting(settings.beam_size, settings.moves, settings.exchanges, settings.rounds)
    return BeamAround(problem, _distinct(starts), setting, state)


def _distinct(starts: Mapping[str, Allocation]) -> dict[str, Allocation]:
    seen: dict[RankVector, str] = {}
    for name, one in starts.items():
        seen.setdefault(one.ranks, name)
    return {name: starts[name] for name in seen.values()}


METHODS: Mapping[str, SearchMethod] = MappingProxyType(
    {
        "alds": SearchMethod(
            ALDSSettings, _start_alds, lambda settings: settings.measures, lambda settings: settings.slice_limits
        ),
        **{name: _single(name) for name in ALLOCATORS if name != "alds"},
        "greedy_ratio": SearchMethod(LayerwiseSettings, _start_greedy_ratio, lambda settings: (settings.measure,)),
        "layerwise": SearchMethod(LayerwiseSettings, _start_additive, lambda settings: (settings.measure,)),
        "beam_around": SearchMethod(
            AroundSettings,
            _start_around,
            lambda settings: tuple(dict.fromkeys(_measure_of(name, settings) for name in settings.around)),
        ),
    }
)
"""The methods by the names that a config's `search.method` takes."""
