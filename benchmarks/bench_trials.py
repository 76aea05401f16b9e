"""Trained methods at equal budgets and equal epochs, BSR's penalty, and how closely budgets are met.

ResNet-20 on CIFAR-10 under RANKRAY_DATA; `--quick` takes a network for digits that is trained on the spot.

table      test accuracy of every method at 50, 60 and 72 % fewer MACs after `--epochs` epochs over all images,
           selection included; `uniform` (one ratio for all layers, fine-tuned for all epochs) is the yardstick.
           "Held out" are training images that no trial is trained on; the dense network was trained on them.
penalty    what BSR's penalty adds to an epoch, and the energy beyond the ranks after an epoch with it and without
budgets    twenty random budgets: what every method's result leaves unused

Cells of the table lie below benchmarks/results/trials/: those that are finished are kept, one that was stopped goes on
after its last epoch. The JSON file is written after every cell, and keeps parts and cells that are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _prepared import has_data
from _record import RESULTS, arguments, record
from _trials_budgets import meet_budgets, show_budgets
from _trials_methods import DIGITS, METHODS, cifar_config, digits_config
from _trials_penalty import measure_penalty, show_penalty
from _trials_table import fill_table, show_table

from orchestrator.config.loading import check_config
from orchestrator.preparation import prepare
from orchestrator.sweeps.material import gather

NAME = "trials"

SHOWN = {"table": show_table, "penalty": show_penalty, "budgets": show_budgets}

STRENGTH = 0.3
"""BSR's lambda: a short schedule's."""

TABLE = tuple(name for name in METHODS if name != "transfer_masks")
"""Transfer masks are for another data set than the network's own."""

GIVEN_BUDGETS = tuple(name for name in METHODS if name != "alds")
"""Ranks that are given are fitted to a budget in the same way wherever they come from."""


def measured(
    part: str,
    given: argparse.Namespace,
    config: Mapping[str, Any],
    folder: Path,
    keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """One part's results.

    Args:
        keep: called with what is known so far where a part takes long.
    """
    sgd, material = DIGITS if given.quick else {}, gather(prepare(check_config(dict(config), "benchmark")))
    if part == "table":
        return fill_table(config, material, given.methods or TABLE, given.budgets, given.epochs, sgd, folder, keep)
    if part == "penalty":
        images, repeats = (1024, 2) if given.quick else (8192, 3)
        return measure_penalty(material, images, repeats, STRENGTH, sgd)
    return meet_budgets(config, material, given.methods or GIVEN_BUDGETS, 3 if given.quick else 20, sgd)


def read_arguments() -> argparse.Namespace:
    """The command line; as every benchmark's, and what is special here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=list(SHOWN), default=list(SHOWN), help="these alone")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="these alone")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.6, 0.72], help="C(r) in MACs")
    parser.add_argument("--epochs", type=int, default=3, help="of every method, selection included (2 or more)")
    given = arguments(NAME, parser)
    if given.epochs < 2:
        parser.error("--epochs: some methods need one to select and one to fine-tune")
    if not given.quick and not has_data():
        parser.error("set RANKRAY_DATA to a folder that holds cifar10/ (see the README), or take --quick")
    if given.quick:
        given.methods, given.budgets, given.epochs = given.methods or ["uniform", "less"], given.budgets[:1], 2
    return given


def main(given: argparse.Namespace) -> None:
    """Measures, prints and records, part by part."""
    started = time.monotonic()
    results = _kept(given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if given.quick else RESULTS / NAME
        config = digits_config(folder) if given.quick else cifar_config()
        for part in given.part:

            def keep(found: Mapping[str, Any], part: str = part) -> None:
                results[part] = _merged(results.get(part, {}), found) if part == "table" else found
                record(NAME, given, {"epochs": given.epochs, "strength": STRENGTH}, results, started)

            found = measured(part, given, config, folder, keep)
            keep(found)
            SHOWN[part](found)


def _kept(given: argparse.Namespace) -> dict[str, Any]:
    if given.json is None or not given.json.exists():
        return {}
    content = json.loads(given.json.read_text())
    same = content["quick"] == given.quick and content["settings"]["epochs"] == given.epochs
    results: dict[str, Any] = content["results"] if same else {}
    return results


def _merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of both; what was just run counts."""
    return {budget: {**before.get(budget, {}), **now.get(budget, {})} for budget in {**before, **now}}


if __name__ == "__main__":
    main(read_arguments())
