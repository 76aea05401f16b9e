"""The exact global step of ALDS: its time, its certificate, and its error beside that of the published allocation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from _allocation_networks import COST, MEASURE, Network, curves, network, options, space, wake_up, with_sliced_linear
from _allocation_published import PUBLISHED, PublishedAllocation, SlicedLayer, sliced_layer
from _record import show

from orchestrator.searches.allocation.minimax import Frontiers
from orchestrator.searches.allocation.options import Allocation, LayerOptions

__all__ = ["QUICK", "GlobalSize", "measure", "show_found"]

PRINTED = 0.5e-4
"""Half the last digit in which published errors are given."""


@dataclass(frozen=True)
class GlobalSize:
    """How much is measured.

    Attributes:
        networks: see `_allocation_networks.network`.
        removed: shares of the convolutions' and linear layers' weights that go.
        repeats: of everything that takes milliseconds.
    """

    networks: tuple[str, ...] = ("resnet20", "resnet32", "resnet56", "tv_resnet18", "tv_resnet50")
    removed: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8)
    repeats: int = 11


QUICK = GlobalSize(networks=("resnet20",), removed=(0.3, 0.8), repeats=3)


@dataclass(frozen=True)
class _Subject:
    """A network with everything that does not depend on the budget.

    Attributes:
        options: ours, linear layers whole.
        frontiers, sliced_frontiers: of those, and of options with linear layers sliced as the authors do.
        layers: for the published allocation.
    """

    network: Network
    options: Sequence[LayerOptions]
    frontiers: Frontiers
    sliced_frontiers: Frontiers
    sliced_options: Sequence[LayerOptions]
    layers: Sequence[SlicedLayer]


def measure(size: GlobalSize, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """By network: `layers`, `options`, milliseconds that do not depend on the budget, and `targets` by share removed.

    Args:
        keep: is given what was found so far, after every network.
        former: what was found before, of networks that are not asked for now.
    """
    wake_up()
    found: dict[str, Any] = {"networks": {**former.get("networks", {})}}
    for name in size.networks:
        found["networks"][name] = _measure_network(network(name), size)
        keep(found)
    return found


def _measure_network(given: Network, size: GlobalSize) -> dict[str, Any]:
    started = time.perf_counter()
    errors = curves(given, "sliced_svd", MEASURE)
    table_seconds = time.perf_counter() - started
    started = time.perf_counter()
    ours = options(given, space(given, "sliced_svd"), errors)
    options_seconds = time.perf_counter() - started
    sliced = with_sliced_linear(given)
    as_authors = options(sliced, space(sliced, "sliced_svd"), curves(sliced, "sliced_svd", MEASURE))
    subject = _Subject(
        given,
        ours,
        Frontiers(ours, COST),
        Frontiers(as_authors, COST),
        as_authors,
        [sliced_layer(weight) for weight in given.weights],
    )
    return {
        "layers": len(given.found.layers),
        "weights": given.size,
        "trained": given.trained,
        "ranks": sum(len(one.ranks) for one in errors),
        "offered": sum(len(one.ranks) - 1 for one in ours),
        "table_seconds": table_seconds,
        "options_seconds": options_seconds,
        "frontiers_ms": _milliseconds(lambda: Frontiers(ours, COST), size.repeats),
        "targets": {str(removed): _measure_target(subject, removed, size.repeats) for removed in size.removed},
    }


def _milliseconds(what: Callable[[], object], repeats: int) -> dict[str, float]:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        what()
        taken.append(1e3 * (time.perf_counter() - started))
    return {"median": statistics.median(taken), "lowest": min(taken), "highest": max(taken)}


def _measure_target(subject: _Subject, removed: float, repeats: int) -> dict[str, Any]:
    budget = round((1.0 - removed) * subject.network.size)
    allocation = subject.frontiers.solve(budget)
    authors = _published(subject, budget)
    # At the published allocation's own size, which may be over the budget, over the same ranks.
    at_its_size = subject.sliced_frontiers.solve(authors["weights"])
    error, weights = _recount(subject.options, allocation)
    known = PUBLISHED.get((subject.network.name, removed))
    comparable = known is not None and (subject.network.trained or subject.network.name.startswith("tv_"))
    return {
        "budget": budget,
        "solve_ms": _milliseconds(lambda: subject.frontiers.solve(budget), repeats),
        "error": error,
        "weights": weights,
        "certificate": _certified(subject.options, allocation, error, weights, budget),
        "error_with_sliced_linear": _recount(subject.sliced_options, subject.sliced_frontiers.solve(budget))[0],
        "heuristic": authors,
        "error_at_heuristics_size": _recount(subject.sliced_options, at_its_size)[0],
        "published": known._asdict() if known is not None and comparable else None,
    }


def _published(subject: _Subject, budget: int) -> dict[str, Any]:
    """The published allocation, its error and size counted anew."""
    started = time.perf_counter()
    allocation = PublishedAllocation(subject.layers, budget)
    found = allocation.run()
    seconds = time.perf_counter() - started
    weights = allocation.size(found)
    return {
        "error": allocation.error(found),
        "weights": weights,
        "within": weights <= budget,
        "seconds": seconds,
    }


def _recount(layers: Sequence[LayerOptions], allocation: Allocation) -> tuple[float, float]:
    """The largest error of an allocation and its weights, read anew from the layers' options."""
    picked = [layer.ranks.index(rank) for layer, rank in zip(layers, allocation.ranks, strict=True)]
    errors = [float(layer.errors[index]) for layer, index in zip(layers, picked, strict=True)]
    return max(errors), sum(float(layer.costs[COST][index]) for layer, index in zip(layers, picked, strict=True))


def _certified(
    layers: Sequence[LayerOptions], allocation: Allocation, error: float, weights: float, budget: float
) -> bool:
    """Whether the allocation is within the budget, and nothing with a smaller error is; computed without the solver."""
    smaller = [layer.costs[COST][layer.errors < error] for layer in layers]
    needed = sum(float(np.min(costs)) for costs in smaller) if all(map(len, smaller)) else np.inf
    note = allocation.note
    same = note["its_cost"] == needed or (note["its_cost"] is None and needed == np.inf)
    return bool(weights <= budget and error == note["error"] and needed > budget and same)


def show_found(found: Mapping[str, Any]) -> None:
    """Prints times, then errors, then what does not hold."""
    networks = found["networks"]
    show(
        "Global step, milliseconds (median); frontiers are built once for all budgets",
        ["", "layers", "ranks", "on ladders", "table, s", "ladders and options, s", "frontiers", "solve, by budget"],
        [_times(name, one) for name, one in networks.items()],
    )
    show(
        "Largest error over the layers: ours, the published heuristic run here, and published figures",
        ["", "removed", "ours", "linear sliced", "heuristic", "its size", "ours there", "its s", "err tp", "err exact"],
        [_errors(name, removed, one) for name, removed, one in _targets(found)],
    )
    for line in remarks(found):
        print(line)


def _times(name: str, one: Mapping[str, Any]) -> list[str]:
    solves = " ".join(f"{target['solve_ms']['median']:.2f}" for target in one["targets"].values())
    return [
        name if one["trained"] else f"{name} (random)",
        *(str(one[key]) for key in ("layers", "ranks", "offered")),
        *(f"{one[key]:.3f}" for key in ("table_seconds", "options_seconds")),
        f"{one['frontiers_ms']['median']:.2f}",
        solves,
    ]


def _errors(name: str, removed: str, one: Mapping[str, Any]) -> list[str]:
    known, heuristic = one["published"], one["heuristic"]
    return [
        name,
        removed,
        *(f"{one[key]:.4f}" for key in ("error", "error_with_sliced_linear")),
        f"{heuristic['error']:.4f}",
        f"{100 * (heuristic['weights'] / one['budget'] - 1):+.2f}%",
        f"{one['error_at_heuristics_size']:.4f}",
        f"{heuristic['seconds']:.2f}",
        *((f"{known[key]:.4f}" for key in ("torchprune", "exact")) if known else ("-", "-")),
    ]


_CLAIMS: Mapping[str, Callable[[Mapping[str, Any]], bool | None]] = {
    "The certificate holds": lambda one: bool(one["certificate"]),
    "Ours is at or below both published figures": lambda one: _at_most_published(one, "error", "torchprune", "exact"),
    "Ours is at or below the authors' figure": lambda one: _at_most_published(one, "error", "torchprune"),
    "With linear layers sliced as the authors do, ours is at or below both": lambda one: _at_most_published(
        one, "error_with_sliced_linear", "torchprune", "exact"
    ),
    "Over the same ranks, ours is at or below the heuristic at the heuristic's own size": lambda one: bool(
        one["error_at_heuristics_size"] <= one["heuristic"]["error"]
    ),
    "The heuristic stays within the budget": lambda one: bool(one["heuristic"]["within"]),
    "Slicing linear layers, too (RankRay offers them whole alone), changes nothing": lambda one: bool(
        one["error_with_sliced_linear"] == one["error"]
    ),
}
"""What is checked of every target; None where there is no figure to check it by."""


def _at_most_published(one: Mapping[str, Any], key: str, *figures: str) -> bool | None:
    """To the printed digits."""
    known = one["published"]
    return None if known is None else one[key] <= min(known[figure] for figure in figures) + PRINTED


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What holds everywhere and what does not, one sentence each."""
    lines = []
    for claim, holds in _CLAIMS.items():
        checked = {f"{name} at {removed}": holds(one) for name, removed, one in _targets(found)}
        failing = [place for place, held in checked.items() if held is False]
        known = sum(held is not None for held in checked.values())
        lines.append(f"{claim} in {known - len(failing)} of {known} cases" + "".join(f"; not {one}" for one in failing))
    return lines


def _targets(found: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        (name, removed, target) for name, one in found["networks"].items() for removed, target in one["targets"].items()
    ]
