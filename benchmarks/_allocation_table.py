"""ALDS' error table, every k and j of every layer: ours against the plain way of computing it, on one core and two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from _allocation_networks import COST, MEASURE, Network, curves, network, options, space
from _allocation_published import PublishedAllocation, SlicedLayer
from _record import by_turns, ratio, show, summary

from orchestrator.config.schema import ClusterSettings
from orchestrator.ray_cluster import Cluster, connect
from orchestrator.searches.allocation.minimax import Frontiers
from search_spaces.error_curves import ErrorCurve
from search_spaces.survey import Survey
from workers.curves import curves_in_parallel
from workers.shared_tensors import pack, weights_of

__all__ = ["QUICK", "TableSize", "measure", "show_found"]

REMOVED = 0.5
"""Of the weights, in the global step that follows the table."""

WANTED = {"plain_over_ours": 10.0, "one_over_two": 1.8, "difference": 1e-5}
"""Asked of ResNet-50: the plain way's time over ours, global step included; one core's over two; errors apart."""

Rows = dict[int, torch.Tensor]
"""By k: `(q,)`, the errors of the ranks 0 to q - 1."""


@dataclass(frozen=True)
class TableSize:
    """How much is measured.

    Attributes:
        networks: see `_allocation_networks.network`.
        layers: how many of each, from the first on; None for all.
        repeats: of every measurement, in turns.
    """

    networks: tuple[str, ...] = ("tv_resnet50", "resnet56")
    layers: int | None = None
    repeats: int = 3


QUICK = TableSize(networks=("resnet20",), layers=8, repeats=2)


def measure(size: TableSize, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """By network: `difference` of errors, `one_core` against the plain way, `tasks` on one core and on two.

    Args:
        keep: is given what was found so far, after every network.
        former: what was found before, of networks that are not asked for now.
    """
    found: dict[str, Any] = {"networks": {**former.get("networks", {})}}
    for name in size.networks:
        given = _first_layers(network(name), size.layers)
        found["networks"][name] = {
            "layers": len(given.found.layers),
            "weights": given.size,
            "trained": given.trained,
            **_one_core(given, size.repeats),
            "tasks": _by_tasks(given, size.repeats),
        }
        keep(found)
    return found


def _first_layers(given: Network, count: int | None) -> Network:
    return Network(given.name, given.model, Survey(given.found.layers[:count], given.found.left_out), given.trained)


def plain_rows(weight: torch.Tensor, ks: Sequence[int], dtype: torch.dtype) -> Rows:
    """One layer's errors as the authors' code computes them.

    Every slice's singular values by themselves, in a loop, and the whole matrix' largest one again for every k. (Theirs
    also has torch allocate the singular vectors that it does not ask for; that is left out here.)

    Args:
        dtype: float32 is the authors'.
    """
    rows = {}
    for k in ks:
        matrix = weight.flatten(1).to(dtype)
        whole = torch.linalg.matrix_norm(matrix, ord=2)
        values = torch.stack([torch.linalg.svdvals(one) for one in torch.chunk(matrix, k, dim=1)])
        rows[k] = values.amax(0) / whole
    return rows


def plain_table(given: Network, ks: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Rows]:
    """The rows of all layers, for the numbers of slices that ours has."""
    return [plain_rows(weight, some, dtype) for weight, some in zip(given.weights, ks, strict=True)]


def _one_core(given: Network, repeats: int) -> dict[str, Any]:
    """Both ways in turns in this process, which has one thread."""
    budget = (1.0 - REMOVED) * given.size
    ours = curves(given, "sliced_svd", MEASURE)  # the first one is not timed: libraries wake up
    ks = [_slices(curve) for curve in ours]
    plain = plain_table(given, ks, torch.float32)
    measures = {
        "ours": lambda: _seconds(lambda: curves(given, "sliced_svd", MEASURE)),
        "plain": lambda: _seconds(lambda: plain_table(given, ks, torch.float32)),
        "ours_global": lambda: _seconds(lambda: _ours_global(given, ours, budget)),
        "plain_global": lambda: _seconds(lambda: _plain_global(given, plain, budget)),
    }
    taken = by_turns(measures, repeats)
    whole = {way: [a + b for a, b in zip(taken[way], taken[f"{way}_global"], strict=True)] for way in ("ours", "plain")}
    return {
        "difference": _differences(given, ours, plain, plain_table(given, ks, torch.float64)),
        "seconds": {name: summary(values) for name, values in taken.items()},
        "plain_over_ours": {
            "table": ratio(taken["plain"], taken["ours"]),
            "table_and_global_step": ratio(whole["plain"], whole["ours"]),
        },
    }


def _slices(curve: ErrorCurve) -> list[int]:
    """The numbers of slices that a curve has, ascending."""
    return sorted({rank[0] for rank in curve.ranks if not isinstance(rank, int)})


def _seconds(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def _ours_global(given: Network, errors: Sequence[ErrorCurve], budget: float) -> None:
    """Everything after the table, nothing kept from before: what ranks cost, ladders, frontiers, the solution."""
    Frontiers(options(given, space(given, "sliced_svd"), errors), COST).solve(budget)


def _plain_global(given: Network, table: Sequence[Rows], budget: float) -> None:
    layers = [
        SlicedLayer(*_folded(weight), {k: row.double().numpy() for k, row in sorted(rows.items(), reverse=True)})
        for weight, rows in zip(given.weights, table, strict=True)
    ]
    PublishedAllocation(layers, budget).run()


def _folded(weight: torch.Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


def _differences(
    given: Network, ours: Sequence[ErrorCurve], single: Sequence[Rows], double: Sequence[Rows]
) -> dict[str, Any]:
    """The largest differences between ours and the plain way in float32 and float64, and between these two."""
    largest = {"ours_to_float32": 0.0, "ours_to_float64": 0.0, "float32_to_float64": 0.0}
    entries = 0
    for curve, one, other in zip(ours, single, double, strict=True):
        fast = torch.tensor(curve.errors, dtype=torch.float64)
        plain, exact = (_along(rows) for rows in (one, other))
        pairs = {
            "ours_to_float32": (fast, plain),
            "ours_to_float64": (fast, exact),
            "float32_to_float64": (plain, exact),
        }
        for name, (a, b) in pairs.items():
            largest[name] = max(largest[name], float((a - b).abs().max()))
        entries += len(fast)
    return {**largest, "entries": entries}


def _along(rows: Rows) -> torch.Tensor:
    """Errors as curves have them: k ascending, then the ranks 1 to q, of which the last loses nothing."""
    padded = [torch.cat([row[1:].double(), torch.zeros(1, dtype=torch.float64)]) for _, row in sorted(rows.items())]
    return torch.cat(padded)


class Holder:
    """An actor that holds one of Ray's CPUs and does nothing."""

    def ready(self) -> bool:
        """Answers once it holds its CPU."""
        return True


@contextmanager
def _free_cpus(cluster: Cluster, count: int) -> Iterator[None]:
    """Leaves so many of the cluster's CPUs to tasks."""
    kind: Any = ray.remote(num_cpus=1)(Holder)
    holders = [kind.remote() for _ in range(int(cluster.cpus_free) - count)]
    ray.get([holder.ready.remote() for holder in holders])
    free = cluster.cpus_free + len(holders)
    try:
        yield
    finally:
        for holder in holders:
            ray.kill(holder)
        while cluster.cpus_free < free:
            time.sleep(0.01)


def _by_tasks(given: Network, repeats: int) -> dict[str, Any]:
    """The same table by one Ray task per layer, on one core and on two, in turns; None on a machine of one core."""
    layers = given.found.layers
    with connect(ClusterSettings(address="local")) as cluster:
        if cluster.cpus_free < 2:
            return {"seconds": None, "one_over_two": None, "in_process_over_two": None}
        weights = ray.put(pack(weights_of(given.model)))

        def table() -> None:
            curves_in_parallel(layers, ["sliced_svd"] * len(layers), [MEASURE], weights)

        def on(count: int) -> float:
            with _free_cpus(cluster, count):
                table()  # workers that have imported everything
                return _seconds(table)

        measures = {
            "one": lambda: on(1),
            "two": lambda: on(2),
            "in_process": lambda: _seconds(lambda: curves(given, "sliced_svd", MEASURE)),
        }
        taken = by_turns(measures, repeats)
    return {
        "seconds": {name: summary(values) for name, values in taken.items()},
        "one_over_two": ratio(taken["one"], taken["two"]),
        "in_process_over_two": ratio(taken["in_process"], taken["two"]),
    }


def show_found(found: Mapping[str, Any]) -> None:
    """Prints times, then differences."""
    rows, apart = [], []
    for name, one in found["networks"].items():
        seconds, quotients = one["seconds"], one["plain_over_ours"]
        cells = [f"{seconds[key]['median']:.3f}" for key in ("plain", "plain_global", "ours", "ours_global")]
        cells += [_range(quotients[key]) for key in ("table", "table_and_global_step")]
        tasks = one["tasks"]
        cells += [_range(tasks[key]) if tasks[key] else "-" for key in ("one_over_two", "in_process_over_two")]
        rows.append([f"{name}, {one['layers']} layers", *cells])
        keys = ("ours_to_float32", "ours_to_float64", "float32_to_float64")
        apart.append([name, str(one["difference"]["entries"]), *(f"{one['difference'][key]:.1e}" for key in keys)])
    show(
        "Seconds (median) on one core, each table with its global step; how many times as fast two cores are",
        ["", "plain", "its step", "ours", "its step", "plain : ours", "with steps", "2 tasks : 1", "2 tasks : no Ray"],
        rows,
    )
    print(
        f"Asked of ResNet-50: plain : ours at least {WANTED['plain_over_ours']:g} with steps, 2 tasks : 1 at least "
        f"{WANTED['one_over_two']:g}, errors within {WANTED['difference']:g} of each other"
    )
    show(
        "Largest difference of errors",
        ["", "entries", "ours to float32", "ours to float64", "float32 to float64"],
        apart,
    )


def _range(found: Mapping[str, float]) -> str:
    return f"{found['ratio']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})"
