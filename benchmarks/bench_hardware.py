"""How far measured times can be relied on, and what a search with latency as its budget makes of them.

On one core by ONNX Runtime unless said otherwise, with random weights and images. Parts, each of which can be run alone
with `--part`:

repeatability  some 40 layers of ResNet-20 and ResNet-18, dense and factorised, batch 1 and 8, in two sessions with an
               hour of other work between. Stopped in that hour, the part goes on with the second session when it is run
               again. `first`, `second`, `difference` (`median`, `largest`, `spearman`).
loaded         the same while another process loads the same core, and its neighbour: what enters the table, what is
               refused, and a plain timing loop beside it. `sessions`, each with `table` and `plain_loop`, both against
               the quiet session's table.
prediction     held-out error of the calibrated prediction for networks that searches propose; sums of layers as they
               are, and a fit on multiply-accumulates, beside it. `cases`, each with `held_out`.
resnet18       ResNet-18 at HALOC's multiply-accumulates: throughput of the network that is found with throughput as a
               budget, and without. `networks`, `searches`, `published`.
leases         two runs and two devices at once, on one cluster and on two: leases that overlap. `cases`, each with
               `overlaps`, `without_lease`, `devices`.
gpu            repeatability and prediction on a CUDA card. `measured`, `card`, `date`.

The JSON file has `results` by part, each with `finished`, `machine`, `git_commit` and `seconds`. All times are of one
moment of one machine: leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import _hardware_gpu
import _hardware_leases
import _hardware_loaded
import _hardware_prediction
import _hardware_repeatability
import _hardware_resnet18
import torch
from _hardware_gpu import GpuSize
from _hardware_leases import LeasesSize
from _hardware_loaded import LoadedSize
from _hardware_prediction import CASES, PredictionSize
from _hardware_repeatability import RepeatabilitySize
from _hardware_resnet18 import Resnet18Size
from _record import arguments
from _scoring_results import Results

NAME = "hardware"

Found = dict[str, Any]
Keep = Callable[[Found], None]


@dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
        size: how much is measured in full, and in the short form.
        takes: how long in full, on an idle machine.
        measure: given a size, where to keep what was found so far, and what a former run has found.
        show: prints it.
    """

    size: Any
    quick: Any
    takes: str
    measure: Callable[[Any, Keep, Mapping[str, Any]], Found]
    show: Callable[[Mapping[str, Any]], None]


PARTS: Mapping[str, Part] = {
    "repeatability": Part(
        RepeatabilitySize(),
        _hardware_repeatability.QUICK,
        "two sessions of some 3 minutes, and the gap between them",
        _hardware_repeatability.measure,
        _hardware_repeatability.show_found,
    ),
    "loaded": Part(
        LoadedSize(),
        _hardware_loaded.QUICK,
        "some 5 minutes quiet and beside a loaded core, 10 to 40 minutes on a loaded one",
        _hardware_loaded.measure,
        _hardware_loaded.show_found,
    ),
    "prediction": Part(
        PredictionSize(),
        _hardware_prediction.QUICK,
        "some 5 minutes for each case of ResNet-20, 20 for ResNet-18",
        _hardware_prediction.measure,
        _hardware_prediction.show_found,
    ),
    "resnet18": Part(
        Resnet18Size(),
        _hardware_resnet18.QUICK,
        "some 30 minutes",
        _hardware_resnet18.measure,
        _hardware_resnet18.show_found,
    ),
    "leases": Part(
        LeasesSize(),
        _hardware_leases.QUICK,
        "some 10 minutes",
        _hardware_leases.measure,
        _hardware_leases.show_found,
    ),
    "gpu": Part(
        GpuSize(),
        _hardware_gpu.QUICK,
        "some 30 minutes where there is a card, no time otherwise",
        _hardware_gpu.measure,
        _hardware_gpu.show_found,
    ),
}


def run(name: str, given: argparse.Namespace, results: Results) -> None:
    """Measures, prints and records one part."""
    part, started = PARTS[name], time.monotonic()
    size = _size(name, part, given)
    settings = {key: value for key, value in asdict(size).items() if key != "cases"}
    if not given.quick:
        print(f"{name}: {part.takes}", flush=True)

    def keep(found: Found) -> None:
        results.keep(name, settings, found, started, finished=False)

    found = part.measure(size, keep, results.former(name, settings))
    finished = name != "prediction" or set((part.quick if given.quick else part.size).cases) <= set(found["cases"])
    results.keep(name, settings, found, started, finished=finished)
    part.show(found)


def _size(name: str, part: Part, given: argparse.Namespace) -> Any:
    """What the command line asks for of a part."""
    size = part.quick if given.quick else part.size
    if name == "repeatability" and given.gap_minutes is not None:
        return replace(size, gap_minutes=given.gap_minutes)
    if name == "prediction" and given.cases:
        return replace(size, cases=tuple(given.cases))
    if name == "resnet18" and given.throughput is not None:
        return replace(size, throughput=given.throughput)
    return size


def read_arguments() -> argparse.Namespace:
    """The command line; as every benchmark's, and what is special here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="this part alone; may be given several times")
    parser.add_argument("--gap-minutes", type=float, metavar="MINUTES", help="repeatability; default: 60")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="prediction: these alone, others are kept")
    parser.add_argument("--throughput", type=float, metavar="RATIO", help="resnet18: over dense; default: 2")
    return arguments(NAME, parser)


def main(given: argparse.Namespace) -> None:
    """Runs the parts one after the other."""
    torch.set_num_threads(1)
    results = Results(NAME, given)
    for name in given.part or PARTS:
        run(name, given, results)


if __name__ == "__main__":
    main(read_arguments())
