"""How much accuracy is left by each way of choosing ranks and factors, nothing trained: what every part gains.

For the CIFAR networks under RANKRAY_DATA (`cifar10/resnet20.pt`, `resnet56.pt`), each compressed to a list of C(r) in
parameters with several seeds (of validation batch, calibration batch and search) by `rankray compare`. Choices are made
on the validation batch alone; the test images are looked at once, at the end. The searches are given in the order in
which each adds one part to the one before:

uniform      channel SVD at one common ratio
alds         channel SVD at the smallest possible maximum error
sliced       the same over sliced layers: ALDS
fitted       the last stage of every cascade refitted to the dense layer's outputs on unlabelled images
around       a beam around that allocation: ranks move down and up
batch_norm   batch norms' statistics taken again as well
activation   `fitted` with encoders that go by the inputs' second moments; beside the line, not in it
corrected    `fitted` together with a bias that keeps every layer's mean output; beside the line too

Runs that are finished are kept below benchmarks/results/quality/ and not repeated. The JSON file has `results` by
network: `dense`, `asked`, and by search and C(r) `accuracy` (median, lowest, highest over the seeds), `compression`
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
from dataclasses import dataclass
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

SEARCHES: Mapping[str, dict[str, Any]] = {
    "uniform": {"method": "uniform", "scheme": "channel_svd"},
    "alds": {"method": "alds", "scheme": "channel_svd"},
    "sliced": {"method": "alds", **_SLICED},
    "fitted": {"method": "alds", **_FITTED},
    "around": {"method": "beam_around", **_FITTED, "objective": "kl"},
    "batch_norm": {"method": "beam_around", **_FITTED, "objective": "kl", "batch_norm": "reestimated"},
    "activation": {"method": "alds", **_FITTED, "norm": "activation"},
    "corrected": {"method": "alds", **_FITTED, "bias": "corrected"},
}
"""By name, what differs from the common `search` block; each adds one part to the one before, two stand apart."""

CHEAP = ("uniform", "alds", "sliced", "fitted")


@dataclass(frozen=True)
class Network:
    """What is compared.

    Attributes:
        config: without `compare`.
        asked: C(r) in parameters, and the test accuracy in per cent that is aimed at.
        searches: names of `SEARCHES`.
        seeds: of validation batch, calibration batch and search.
    """

    config: Mapping[str, Any]
    asked: Mapping[float, float | None]
    searches: Sequence[str]
    seeds: Sequence[int]

    @property
    def comparison(self) -> dict[str, Any]:
        """The config that `rankray compare` takes."""
        compare = {
            "budgets": list(self.asked),
            "seeds": list(self.seeds),
            "searches": {name: SEARCHES[name] for name in self.searches},
        }
        return {**self.config, "compare": compare}


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
        return {"digits": Network({**config, "search": search}, {0.5: None, 0.7: None}, CHEAP, (0, 1))}
    return {
        "resnet20": Network(cifar_config(20), {0.5: 89.0, 0.6: 85.0, 0.7: 75.0}, tuple(SEARCHES), (0, 1, 2)),
        "resnet56": Network(cifar_config(56), {0.5: 90.0, 0.6: 89.0, 0.7: 84.0, 0.8: 65.0}, tuple(SEARCHES), (0, 1, 2)),
    }


def compared(network: Network, folder: Path) -> pd.DataFrame:
    """Runs the comparison, goes on with one that was stopped, or reads one that is finished."""
    raw = network.comparison
    digest = hashlib.blake2b(json.dumps(raw, sort_keys=True).encode(), digest_size=4).hexdigest()
    location = folder / digest
    with show_progress(Console(stderr=True)) as observer:
        if location.exists():
            return api.resume_comparison(location, observer).table
        return api.compare(raw, location, observer=observer).table


def judged(network: Network, table: pd.DataFrame) -> dict[str, Any]:
    """What the comparison came to, over its seeds.

    Raises:
        RuntimeError: a run has no result.
    """
    unfinished = table[table["status"] != "finished"]
    if len(unfinished):
        first = unfinished.iloc[0]
        raise RuntimeError(f"{first['search']} at {first['budget']}: {first['status']}: {first['reason']}")
    found: dict[str, Any] = {name: {} for name in network.searches}
    for (name, target), runs in table.groupby(["search", "budget_value"], sort=False):
        found[str(name)][f"{target:g}"] = {
            "accuracy": summary(list(runs["test_accuracy"])),
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
        texts = [_cell(cells[target]) for target in targets]
        rows.append([search, *texts, f"{sum(cells[target]['seconds'] for target in targets) / len(targets):.0f}"])
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
            results[name] = judged(wanted[name], compared(wanted[name], folder / name))
            show_found(name, results[name])
    settings = {name: {"seeds": list(one.seeds), "searches": list(one.searches)} for name, one in wanted.items()}
    record(NAME, given, settings, results, started)


if __name__ == "__main__":
    main(read_arguments())
