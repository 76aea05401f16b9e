"""How fast ranks are allocated, and how good the exact global step of ALDS is beside the published heuristic.

All on one core unless said otherwise. Parts, each of which can be run alone with `--part`, and each for some of its
networks alone with `--networks` (others keep what the JSON file has of them):

table       ALDS' error table of ResNet-50 (torchvision, random weights, seed 0) and ResNet-56 (CIFAR): every divisor k
            and every j. Ours against the plain way (one SVD per slice, the norm anew for every k, float32), in turns,
            each with its global step; then by Ray tasks on one core and on two. By network `difference`, `seconds`,
            `plain_over_ours`, `tasks`.
global      the exact global step: milliseconds, whether its certificate holds, and the largest error beside that of the
            published heuristic, run here, and beside published figures. By network `frontiers_ms` and `targets`.
seconds     every allocation search's own decision, and the error curves that it decides by. By network `curve_seconds`,
            `decision_seconds`.

CIFAR networks have trained weights where RANKRAY_DATA names a folder with `cifar10/resnet20.pt` and so on; without,
random ones take the same time, and `global` compares them with no published figure. The JSON file has `results` by
part, each with `finished`, `machine`, `git_commit` and `seconds`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import _allocation_global
import _allocation_seconds
import _allocation_table
import torch
from _allocation_global import GlobalSize
from _allocation_seconds import SecondsSize
from _allocation_table import TableSize
from _record import arguments
from _scoring_results import Results

NAME = "allocations"

Found = dict[str, Any]
Keep = Callable[[Found], None]
Size = TableSize | GlobalSize | SecondsSize


@dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
        size: how much is measured in full, and in the short form.
        measure: given a size, where to keep what was found so far, and what a former run has found.
        show: prints it.
    """

    size: Size
    quick: Size
    measure: Callable[[Any, Keep, Mapping[str, Any]], Found]
    show: Callable[[Mapping[str, Any]], None]


PARTS: Mapping[str, Part] = {
    "table": Part(TableSize(), _allocation_table.QUICK, _allocation_table.measure, _allocation_table.show_found),
    "global": Part(GlobalSize(), _allocation_global.QUICK, _allocation_global.measure, _allocation_global.show_found),
    "seconds": Part(
        SecondsSize(), _allocation_seconds.QUICK, _allocation_seconds.measure, _allocation_seconds.show_found
    ),
}


def run(name: str, given: argparse.Namespace, results: Results) -> None:
    """Measures, prints and records one part."""
    part, started = PARTS[name], time.monotonic()
    size = part.quick if given.quick else part.size
    settings = {key: value for key, value in asdict(size).items() if key != "networks"}
    if given.networks:
        size = replace(size, networks=tuple(given.networks))
    # Measured again as a whole, unless it is asked for in pieces.
    former = results.former(name, settings) if given.networks else {}

    def keep(found: Found) -> None:
        results.keep(name, settings, found, started, finished=False)

    found = part.measure(size, keep, former)
    wanted = part.quick.networks if given.quick else part.size.networks
    results.keep(name, settings, found, started, finished=set(wanted) <= set(found["networks"]))
    part.show(found)


def read_arguments() -> argparse.Namespace:
    """The command line; as every benchmark's, and what is special here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="this part alone; may be given several times")
    parser.add_argument(
        "--networks", nargs="+", metavar="NAME", help="these alone: resnet20, tv_resnet50, ...; default: the part's"
    )
    return arguments(NAME, parser)


def main(given: argparse.Namespace) -> None:
    """Runs on one thread."""
    torch.set_num_threads(1)
    results = Results(NAME, given)
    for name in given.part or PARTS:
        run(name, given, results)


if __name__ == "__main__":
    main(read_arguments())
