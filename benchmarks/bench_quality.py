"""How much accuracy is left by each way of choosing ranks and factors, nothing trained: what every part gains.

For the CIFAR networks under RANKRAY_DATA (`cifar10/resnet20.pt`, `resnet56.pt`), each compressed to a list of C(r) in
parameters with several seeds (of validation batch, calibration batch and search) by `rankray compare`. Choices are made
on the validation batch alone; the test images are looked at once, at the end. The searches are given in the order in
which each adds one part to the one before:

uniform      channel SVD at one common ratio
alds         channel SVD at the smallest possible maximum error
sliced       the same over sliced layers: ALDS
fitted       the last stage of every cascade refitted to the dense layer's outputs on unlabelled images
corrected    together with a bias that keeps every layer's mean output
around       a beam around that allocation: ranks move down and up; moves are probed once
both         that, with batch norms' statistics taken again, in the network as while candidates are scored

Beside this line stand `activation`, which is `fitted` with encoders that go by the inputs' second moments, and
`batch_norm`, which is `corrected` with batch norms' statistics taken again.

Runs that are finished are kept below benchmarks/results/quality/ and not repeated. The JSON file has `results` by
network: `dense`, `asked`, and by search and C(r) `accuracy` (median, lowest, highest over the `seeds`), `compression`
(the least that a run really reached), `seconds` (median) and `candidates`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
from _prepared import has_data
from _record import RESULTS, arguments, record, show, summary
from rich.console import Console

from orchestrator import api
from orchestrator.demo import demo_config, train_digits
from orchestrator.progress import show_progress

NAME = "quality"

_SLICED = {"scheme": "sliced_svd"}
_FITTED = {**_SLICED, "last_stage": "fitted"}
_CORRECTED = {**_FITTED, "bias": "corrected"}
_AROUND = {"method": "beam_around", **_CORRECTED, "objective": "kl", "rounds": 1}

SEARCHES: Mapping[str, dict[str, Any]] = {
    "uniform": {"method": "uniform", "scheme": "channel_svd"},
    "alds": {"method": "alds", "scheme": "channel_svd"},
    "sliced": {"method": "alds", **_SLICED},
    "fitted": {"method": "alds", **_FITTED},
    "corrected": {"method": "alds", **_CORRECTED},
    "around": _AROUND,
    "both": {**_AROUND, "batch_norm": "reestimated"},
    "activation": {"method": "alds", **_FITTED, "norm": "activation"},
    "batch_norm": {"method": "alds", **_CORRECTED, "batch_norm": "reestimated"},
}
"""By name, what differs from the common `search` block; each adds one part to the one before, two stand apart."""

ALLOCATIONS = ("uniform", "alds", "sliced", "fitted", "corrected", "activation", "batch_norm")
"""Those that score a few candidates only."""


@dataclass(frozen=True)
class Part:
    """Searches by name, each run at every C(r) with every seed."""

    searches: Sequence[str]
    budgets: Sequence[float]
    seeds: Sequence[int]

    @property
    def compare(self) -> dict[str, Any]:
        """A config's `compare` block."""
        searches = {name: SEARCHES[name] for name in self.searches}
        return {"budgets": list(self.budgets), "seeds": list(self.seeds), "searches": searches}


@dataclass(frozen=True)
class Network:
    """What is compared.

    Attributes:
        config: without `compare`.
        asked: C(r) in parameters, and the test accuracy in per cent that is aimed at.
        parts: which searches, with what seeds (of validation batch, calibration batch and search), at what C(r).
    """

    config: Mapping[str, Any]
    asked: Mapping[float, float | None]
    parts: Sequence[Part]

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """The configs that `rankray compare` takes."""
        return [{**self.config, "compare": part.compare} for part in self.parts]

    def only(self, searches: Sequence[str] | None) -> Network:
        """With the parts that hold one of these searches; all for None."""
        return replace(self, parts=[one for one in self.parts if searches is None or set(searches) & set(one.searches)])


def cifar_config(depth: int) -> dict[str, Any]:
    """The CIFAR ResNet of a depth with 256 validation images and 1,024 unlabelled ones."""
    return {
        "model": {
            "build": f"workers.models:cifar_resnet{depth}",
            "checkpoint": f"${{RANKRAY_DATA}}/cifar10/resnet{depth}.pt",
        },
        "data": {
            "train": {"parquet": "${RANKRAY_DATA}/cifar10/train-*.parquet"},
            "test": {"parquet": "${RANKRAY_DATA}/cifar10/test-*.parquet"},
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            "validation_size": 256,
            "calibration_size": 1024,
        },
        "search": {"method": "alds", "scheme": "sliced_svd", "budget": {"parameters": 0.5}, "objective": "accuracy"},
    }


def networks(folder: Path, quick: bool) -> dict[str, Network]:
    """The CIFAR networks; in the short form a network for digits, trained on the spot.

    Args:
        folder: for what is trained.
    """
    if quick:
        checkpoint = folder / "digits.safetensors"
        safetensors.torch.save_file(train_digits(seed=0).state_dict(), checkpoint)
        config = demo_config(checkpoint)
        config["data"]["calibration_size"] = 512
        search = {"method": "alds", "scheme": "sliced_svd", "budget": {"parameters": 0.5}, "objective": "accuracy"}
        part = Part(("uniform", "alds", "sliced", "fitted", "corrected"), (0.5, 0.7), (0, 1))
        return {"digits": Network({**config, "search": search}, {0.5: None, 0.7: None}, [part])}
    seeds = (0, 1, 2)
    asked_20, asked_56 = {0.5: 89.0, 0.6: 85.0, 0.7: 75.0}, {0.5: 90.0, 0.6: 89.0, 0.7: 84.0, 0.8: 65.0}
    # Beams take minutes each: only where they gain most.
    parts_20 = [Part(ALLOCATIONS, list(asked_20), seeds), Part(("around",), (0.7,), seeds)]
    parts_56 = [
        Part(("around",), (0.7,), seeds),
        Part(("both",), (0.8,), seeds),
        Part(ALLOCATIONS, list(asked_56), seeds),
    ]
    return {
        "resnet20": Network(cifar_config(20), asked_20, parts_20),
        "resnet56": Network(cifar_config(56), asked_56, parts_56),
    }


def compared(network: Network, folder: Path) -> pd.DataFrame:
    """Runs the comparisons, goes on with those that were stopped, and reads those that are finished."""
    return pd.concat([_compared(raw, folder) for raw in network.comparisons], ignore_index=True)


def _compared(raw: Mapping[str, Any], folder: Path) -> pd.DataFrame:
    digest = hashlib.blake2b(json.dumps(raw, sort_keys=True).encode(), digest_size=4).hexdigest()
    location = folder / digest
    with show_progress(Console(stderr=True)) as observer:
        if location.exists():
            return api.resume_comparison(location, observer).table
        return api.compare(raw, location, observer=observer).table


def judged(network: Network, table: pd.DataFrame) -> dict[str, Any]:
    """What the comparisons came to, over their seeds.

    Raises:
        RuntimeError: a run has no result.
    """
    unfinished = table[table["status"] != "finished"]
    if len(unfinished):
        first = unfinished.iloc[0]
        raise RuntimeError(f"{first['search']} at {first['budget']}: {first['status']}: {first['reason']}")
    found: dict[str, Any] = {name: {} for name in SEARCHES if name in set(table["search"])}
    for (name, target), runs in table.groupby(["search", "budget_value"], sort=False):
        found[str(name)][f"{target:g}"] = {
            "accuracy": summary(list(runs["test_accuracy"])),
            "seeds": len(runs),
            "compression": float(runs["compression_parameters"].min()),
            "seconds": statistics.median(runs["seconds"]),
            "candidates": statistics.median(runs["evaluations"]),
        }
    dense = float(table["dense_test_accuracy"].iloc[0])
    return {"dense": dense, "asked": {f"{c:g}": percent for c, percent in network.asked.items()}, "searches": found}


def show_found(name: str, found: Mapping[str, Any]) -> None:
    """Prints one network's table: median test accuracy in per cent, lowest and highest in brackets."""
    targets = list(found["asked"])
    rows = [["asked", *(_percent(found["asked"][target]) for target in targets), ""]]
    for search, cells in found["searches"].items():
        texts = [_cell(cells[target]) if target in cells else "" for target in targets]
        rows.append([search, *texts, f"{statistics.mean(cell['seconds'] for cell in cells.values()):.0f}"])
    show(
        f"{name}: test accuracy in %, dense {100 * found['dense']:.1f}; nothing trained",
        ["", *(f"C = {target}" for target in targets), "seconds"],
        rows,
    )


def _percent(asked: float | None) -> str:
    return "" if asked is None else f"{asked:g}"


def _cell(cell: Mapping[str, Any]) -> str:
    accuracy = {which: 100 * value for which, value in cell["accuracy"].items()}
    return f"{accuracy['median']:.1f} ({accuracy['lowest']:.1f} to {accuracy['highest']:.1f})"


def read_arguments() -> argparse.Namespace:
    """The command line; as every benchmark's, and what is special here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="these alone: resnet20, resnet56")
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, metavar="NAME", help="only comparisons with these")
    given = arguments(NAME, parser)
    if not given.quick and not has_data():
        parser.error("set RANKRAY_DATA to a folder that holds cifar10/ (see the README), or take --quick")
    return given


def main(given: argparse.Namespace) -> None:
    """Compares, prints and records."""
    started = time.monotonic()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if given.quick else RESULTS / NAME
        wanted = networks(Path(temporary), given.quick)
        for name in given.networks or wanted:
            asked = wanted[name].only(given.searches)
            if not asked.parts:
                continue
            results[name] = judged(asked, compared(asked, folder / name))
            show_found(name, results[name])
    settings = {name: [part.compare for part in one.parts] for name, one in wanted.items()}
    record(NAME, given, settings, results, started)


if __name__ == "__main__":
    main(read_arguments())
