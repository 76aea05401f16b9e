"""How fast candidates are scored, against the plain pass, and what screening saves and costs.

The plain pass is what anyone would write first (`_scoring_plain.py`): truncated weights multiplied out once per
(layer, rank), which is not counted, copied into the unchanged network, and one whole forward pass per candidate, on
the same batch with the same one thread. Parts, each of which can be run alone with `--part`:

exact       mBS on ResNet-56, (s, K) = (10, 5), to C_d = 0.56: the whole search, then both ways in turns on levels
            spread evenly over it. `search`, `levels`, `whole_search`, `largest_difference` (between losses).
floor       the least time that the multiply-accumulates of the same candidates need, and a profile. `rates`,
            `best_rate` (multiply-accumulates per second), `fast_seconds`, `floor`, `profile`.
evaluators  one and two evaluators on Ray. `per_second`, `two_over_one`, `one_over_in_process`.
interleaved mBS with two settings under three budgets, one search at a time and all on one pool. `one_by_one`,
            `interleaved`, `one_by_one_over_interleaved`, `scoring_ratio`, `answers` (whether they are the same).
growth      seconds per candidate by network, beam size and batch. `layers`, `beam`, `batch`.
screened    exact searches, and those screened in float32 and in bfloat16, of ResNet-20 and ResNet-56, three C_d, three
            seeds. `cells`, `summary`.

The JSON file has `results` by part; a part that is run again replaces itself alone. Each also has `finished`,
`machine`, `git_commit` and `seconds`. What takes long is not lost: searches are recorded level by level as courses and
go on where they were stopped. Delete a course to search, and time, anew: its levels name the code they were timed with.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _scoring_evaluators
import _scoring_exact
import _scoring_floor
import _scoring_growth
import _scoring_interleaved
import _scoring_screened
import torch
from _prepared import has_data
from _record import arguments
from _scoring_exact import ExactSize
from _scoring_growth import GrowthSize
from _scoring_interleaved import InterleavedSize
from _scoring_results import Results
from _scoring_screened import ScreenedSize

NAME = "scoring"
NO_DATA = (
    "RANKRAY_DATA names no folder with cifar10/: random weights and noise stand for the trained networks and CIFAR-10, "
    "which takes the same time; `screened` is left out, as its answers would mean nothing."
)

Found = dict[str, Any]
Keep = Callable[[Found], None]


@dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
        settings: what is recorded with it.
        measure: given where to keep what was found so far, and what a former run has found.
        show: prints it.
    """

    settings: dict[str, Any]
    measure: Callable[[Keep, Mapping[str, Any]], Found]
    show: Callable[[Mapping[str, Any]], None]


def parts(given: argparse.Namespace, courses: Path) -> dict[str, Part]:
    """The parts by name, in the order in which they are run; those that need real data only where it is there."""
    exact = _scoring_exact.QUICK if given.quick else ExactSize()
    growth = _scoring_growth.QUICK if given.quick else GrowthSize()
    interleaved = _scoring_interleaved.QUICK if given.quick else InterleavedSize()
    screened = _screened_size(given)
    origin = {"real_data": has_data()}
    found = {
        "exact": Part(
            {**asdict(exact), **origin}, lambda *_: _scoring_exact.measure(exact, courses), _scoring_exact.show_found
        ),
        "floor": Part(
            {**asdict(exact), **origin}, lambda *_: _scoring_floor.measure(exact, courses), _scoring_floor.show_found
        ),
        "evaluators": Part(
            {**asdict(exact), **origin},
            lambda *_: _scoring_evaluators.measure(exact, courses),
            _scoring_evaluators.show_found,
        ),
        "interleaved": Part(
            {**asdict(interleaved), **origin},
            lambda *_: _scoring_interleaved.measure(interleaved),
            lambda found: _scoring_interleaved.show_found(found, interleaved),
        ),
        "growth": Part(
            asdict(growth),
            lambda keep, former: _scoring_growth.measure(growth, keep, former),
            lambda rows: _scoring_growth.show_found(rows, growth),
        ),
        "screened": Part(
            {"images": screened.images},  # cells of other depths, targets and seeds stay beside those asked for
            lambda keep, former: _scoring_screened.measure(screened, courses, keep, former),
            _scoring_screened.show_found,
        ),
    }
    return found if has_data() else {name: part for name, part in found.items() if name != "screened"}


def run(given: argparse.Namespace, courses: Path) -> None:
    """Measures, prints and records the parts that are asked for."""
    results = Results(NAME, given)
    for name, part in parts(given, courses).items():
        if given.part is None or name in given.part:
            _run_part(name, part, results)


def _run_part(name: str, part: Part, results: Results) -> None:
    started = time.monotonic()

    def keep(found: Found) -> None:
        results.keep(name, part.settings, found, started, finished=False)

    found = part.measure(keep, results.former(name, part.settings))
    results.keep(name, part.settings, found, started, finished=True)
    part.show(found)


def _screened_size(given: argparse.Namespace) -> ScreenedSize:
    """What the command line asks for of `screened`."""
    size = _scoring_screened.QUICK if given.quick else ScreenedSize()
    return ScreenedSize(
        depths=tuple(given.depths or size.depths),
        targets=tuple(given.targets or size.targets),
        seeds=tuple(given.seeds or size.seeds),
        images=size.images,
    )


def read_arguments() -> argparse.Namespace:
    """The command line; as every benchmark's, and what is special here."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("exact", "floor", "evaluators", "interleaved", "growth", "screened")
    parser.add_argument("--part", action="append", choices=names, help="this part alone; may be given several times")
    parser.add_argument(
        "--courses", type=Path, metavar="DIR", help="recorded searches; default: courses/ beside the JSON file"
    )
    only, default = parser.add_argument_group("screened, which may be run in pieces"), ScreenedSize()
    only.add_argument("--depths", type=int, nargs="+", choices=(20, 56), help=_default(default.depths))
    only.add_argument("--targets", type=float, nargs="+", metavar="C_D", help=_default(default.targets))
    only.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help=_default(default.seeds))
    return arguments(NAME, parser)


def _default(values: Sequence[object]) -> str:
    return f"default: {' '.join(map(str, values))}"


def main(given: argparse.Namespace) -> None:
    """Runs on one thread; a quick run's courses are thrown away."""
    torch.set_num_threads(1)
    if not has_data():
        print(NO_DATA)
    with tempfile.TemporaryDirectory() as thrown_away:
        if given.courses is None:
            given.courses = Path(thrown_away) if given.quick else given.json.parent / "courses"
        run(given, given.courses)


if __name__ == "__main__":
    main(read_arguments())
