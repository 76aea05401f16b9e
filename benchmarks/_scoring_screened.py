"""Screened mBS against exact mBS and the plain pass: time, candidates, and how good the answers are.

Screened in float32 and in bfloat16, the latter with more children a level, for which it leaves time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from _record import show, summary
from _scoring_course import Course, run_course
from _scoring_network import Network, cifar_network

from search_spaces.assembly import assemble
from workers.batch import accuracy
from workers.scorer import judge_in_slices
from workers.splits import batches

__all__ = ["QUICK", "ScreenedSize", "measure", "show_found"]

TARGET_RATIO = 30.0
TEST_SLICE = 250

WAYS: Mapping[str, Sequence[str]] = {
    "exact": [],
    "screened": ["search.screening={}"],
    "screened_bfloat16": ["search.screening={keep: 4, precision: bfloat16}"],
}
"""What each way sets, as `--set` takes it."""


@dataclass(frozen=True)
class ScreenedSize:
    """How much is measured: every depth with every C_d with every seed.

    Attributes:
        depths: of the CIFAR ResNets: 20 or 56.
        targets: C_d.
        seeds: of the search and of the validation batch.
        images: in the validation batch.
    """

    depths: tuple[int, ...] = (20, 56)
    targets: tuple[float, ...] = (0.3, 0.5, 0.6)
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 256


QUICK = ScreenedSize(depths=(20,), targets=(0.06,), seeds=(0,), images=16)


def measure(
    size: ScreenedSize, folder: Path, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]
) -> dict[str, Any]:
    """Cells by name, `resnet20-c0.3-s0`; a search that is recorded as a course is not run again.

    Args:
        keep: is given what was found so far, after every cell.
        former: what earlier runs found; cells that this run does not ask for stay.
    """
    cells: dict[str, Any] = {**former.get("cells", {})}
    found: dict[str, Any] = {"cells": cells, "target_ratio": TARGET_RATIO}
    for depth, target, seed in product(size.depths, size.targets, size.seeds):
        name = f"resnet{depth}-c{target:g}-s{seed}"
        cells[name] = _cell(depth, target, seed, size.images, folder)
        cells[name] |= {"depth": depth, "target": target, "seed": seed}
        found["summary"] = _summary(list(cells.values()))
        keep(found)
    return found


def _cell(depth: int, target: float, seed: int, images: int, folder: Path) -> dict[str, Any]:
    cell: dict[str, Any] = {}
    for way, overrides in WAYS.items():
        network = cifar_network(depth, images, target, [f"search.seed={seed}", *overrides])
        course = run_course(network, folder / f"{network.name}-c{target:g}-s{seed}-n{images}-{way}.jsonl")
        cell[way] = _run(network, course)
    for way in WAYS:
        # The plain pass would score what the exact search scores; its seconds are those of the same minutes.
        cell[way]["plain_over_this"] = cell[way]["plain_seconds"] * cell["exact"]["candidates"] / cell[way]["seconds"]
    return cell


def _run(network: Network, course: Course) -> dict[str, Any]:
    """A search and its answer, judged by plain passes of the assembled network; the test data choose nothing."""
    prepared = network.prepared
    assert prepared.test is not None  # the examples name test data
    screening = prepared.config.search.model_dump()["screening"]
    ranks = course.answer.ranks
    compressed = assemble(prepared.model, prepared.found.layers, prepared.schemes, ranks, network.factors)
    validation = judge_in_slices(compressed, [prepared.validation], accuracy)
    test = judge_in_slices(compressed, batches(prepared.test, TEST_SLICE), accuracy)
    if validation is None or test is None:
        raise RuntimeError(f"{network.name}: the answer's outputs are not finite")
    return {
        "screening": screening,
        "seconds": course.seconds,
        "levels": len(course.levels),
        "candidates": course.candidates,
        "in_bfloat16": course.in_bfloat16,
        "skipped": course.skipped,
        "plain_seconds": statistics.mean(course.plain_seconds),
        "plain_passes": len(course.plain_seconds),
        "in_window": course.answer.in_window,
        "compression": prepared.space.compression("parameters", ranks),
        "validation_loss": validation["loss"],
        "validation_accuracy": validation["accuracy"],
        "test_loss": test["loss"],
        "test_accuracy": test["accuracy"],
        "git_commits": course.git_commits,
    }


def _summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds by depth and C_d, the smallest ratio, and how much the screened answers differ."""
    rows = []
    for depth, target in sorted({(cell["depth"], cell["target"]) for cell in cells}):
        same = [cell for cell in cells if (cell["depth"], cell["target"]) == (depth, target)]
        row: dict[str, Any] = {"depth": depth, "target": target, "seeds": sorted(cell["seed"] for cell in same)}
        ways = [way for way in WAYS if all(way in cell for cell in same)]  # cells of older runs may lack one
        for way in ways:
            row[way] = {
                key: statistics.mean(cell[way][key] for cell in same)
                for key in ("seconds", "candidates", "skipped", "plain_over_this", "validation_loss", "test_accuracy")
            }
            row[way]["lowest_plain_over_this"] = min(cell[way]["plain_over_this"] for cell in same)
        for way, key in product(ways[1:], ("validation_loss", "test_accuracy")):
            row[way][f"{key}_difference"] = summary([cell[way][key] - cell["exact"][key] for cell in same])
        rows.append(row)
    return rows


def show_found(found: Mapping[str, Any]) -> None:
    """Prints every cell, and the means over the seeds."""
    columns = ["", "seconds", "scored", "skipped", "plain / this", "validation loss", "test accuracy"]
    rows = []
    for name, cell in sorted(found["cells"].items()):
        rows += [_row(f"{name} {_named(way)}", cell[way]) for way in WAYS if way in cell]
    show(
        "Exact and screened searches, one thread; plain / this: how many times as long the plain way takes",
        columns,
        rows,
    )
    rows = []
    for one in found["summary"]:
        label = f"ResNet-{one['depth']}, C_d {one['target']:g}, seeds {' '.join(map(str, one['seeds']))}"
        rows += [_row(f"{label}: {_named(way)}", one[way]) for way in WAYS if way in one]
    show("Means over the seeds", columns, rows)
    for way in list(WAYS)[1:]:
        _show_differences(way, [cell for cell in found["cells"].values() if way in cell])


def _show_differences(way: str, cells: Sequence[Mapping[str, Any]]) -> None:
    """Prints how the answers of a way differ from the exact search's, over all cells."""
    if not cells:
        return
    losses, accuracies = (
        [cell[way][key] - cell["exact"][key] for cell in cells] for key in ("validation_loss", "test_accuracy")
    )
    points = [100 * difference for difference in accuracies]
    no_worse = sum(difference <= 0 for difference in losses)
    print(
        f"{_named(way)} against exact: validation loss no worse in {no_worse} of {len(losses)}, at most "
        f"{max(losses):+.4f}; test accuracy {statistics.mean(points):+.2f} points in the mean "
        f"({min(points):+.1f} to {max(points):+.1f})"
    )


def _named(way: str) -> str:
    return way.replace("_", " in ")


def _row(name: str, one: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{one['seconds']:.1f}",
        f"{one['candidates']:,.0f}",
        f"{one['skipped']:,.0f}",
        f"{one['plain_over_this']:.1f}",
        f"{one['validation_loss']:.4f}",
        f"{100 * one['test_accuracy']:.2f} %",
    ]
