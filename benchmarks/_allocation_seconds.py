"""How long every allocation search takes to decide, beside the error curves that it decides by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from _allocation_networks import COST, MEASURE, Network, curves, network, shapes, space, wake_up
from _record import show, summary

from orchestrator.searches.contract import Problem, SearchMethod
from orchestrator.searches.registry import search_methods
from orchestrator.searches.settings import SearchSettings
from search_spaces.budgets import Budget, Limit
from search_spaces.ladders import Frontier, with_ladders

__all__ = ["QUICK", "SecondsSize", "measure", "show_found"]

_CHANNEL = ("channel_svd", "frobenius", {"measure": "frobenius"})
SEARCHES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    **dict.fromkeys(("uniform", "energy", "energy_product", "energy_product_exact", "vbmf", "lc_rule"), _CHANNEL),
    "alds": ("sliced_svd", MEASURE, {"measures": [MEASURE], "slice_limits": [None]}),
}
"""Every search with its scheme, the measure of its curves, and the settings that make it go by these."""


@dataclass(frozen=True)
class SecondsSize:
    """How much is measured.

    Attributes:
        networks: see `_allocation_networks.network`; from few layers to many.
        removed: C_d, of the parameters.
        repeats: of every decision; one where the first takes longer than `patience` seconds.
        patience: see `repeats`.
    """

    networks: tuple[str, ...] = ("tv_resnet18", "tv_resnet50", "tv_resnet152")
    removed: float = 0.5
    repeats: int = 5
    patience: float = 5.0


QUICK = SecondsSize(networks=("resnet8", "resnet20"), repeats=2)


def measure(size: SecondsSize, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """By network: `layers`, `curve_seconds` by scheme (ladders included), `decision_seconds` by search.

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


def _measure_network(given: Network, size: SecondsSize) -> dict[str, Any]:
    problems: dict[str, Problem] = {}
    curve_seconds: dict[str, float] = {}
    for scheme, measured, _ in SEARCHES.values():
        if scheme not in problems:
            started = time.perf_counter()
            problems[scheme] = _problem(given, scheme, measured, size.removed)
            curve_seconds[scheme] = time.perf_counter() - started
    return {
        "layers": len(given.found.layers),
        "weights": given.size,
        "curve_seconds": curve_seconds,
        "decision_seconds": {
            name: summary(_decisions(name, own, problems[scheme], size)) for name, (scheme, _, own) in SEARCHES.items()
        },
    }


def _problem(given: Network, scheme: str, measured: str, removed: float) -> Problem:
    """The local step: curves, and the ladders that they make."""
    whole = space(given, scheme)
    errors = curves(given, scheme, measured)
    budget = Budget.of([Limit(COST, removed, "ratio")], whole)
    problem = Problem(whole, budget, "cross_entropy", 0, {measured: errors}, shapes(given, scheme))
    return replace(problem, space=with_ladders(whole, [Frontier(errors)], COST))


def _decisions(name: str, own: Mapping[str, Any], problem: Problem, size: SecondsSize) -> Sequence[float]:
    """Seconds until the search knows all that it will ask for, each time from its beginning."""
    method: SearchMethod = search_methods().get(name, "search.method")
    settings: SearchSettings = method.settings(method=name, budget={COST: size.removed}, **own)
    taken: list[float] = []
    while len(taken) < size.repeats and sum(taken) < size.patience:
        started = time.perf_counter()
        method.start(settings, problem, None)
        taken.append(time.perf_counter() - started)
    return taken


def show_found(found: Mapping[str, Any]) -> None:
    """Prints one table: searches by network, and how decisions grow from the first network to the last."""
    networks = found["networks"]
    names = list(networks)
    layers = {name: one["layers"] for name, one in networks.items()}
    columns = [f"{name}: {layers[name]} layers" for name in names]
    first, last = networks[names[0]], networks[names[-1]]
    rows = []
    for scheme in first["curve_seconds"]:
        taken = [networks[name]["curve_seconds"][scheme] for name in names]
        rows.append([f"curves, {scheme}", *(f"{one:.2f} s" for one in taken), f"{taken[-1] / taken[0]:.1f}"])
    for search in first["decision_seconds"]:
        taken = [networks[name]["decision_seconds"][search]["median"] for name in names]
        rows.append([search, *(f"{1e3 * one:.1f} ms" for one in taken), f"{taken[-1] / taken[0]:.1f}"])
    growth = f"growth at {last['layers'] / first['layers']:.1f} x layers"
    show("Error curves (one core, once) and every search's own decision (median)", ["", *columns, growth], rows)
