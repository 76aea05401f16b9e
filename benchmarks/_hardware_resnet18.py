"""ResNet-18 at HALOC's multiply-accumulates, searched with its throughput as a budget beside them, and without.

Both searches are whole runs by the public door, decided by error curves: no label is looked at but to report. Weights
and images are random unless IMAGENET names images (see `examples/resnet18_latency.yaml`): the ranks' quality then means
nothing, the clock does. At the end both networks and the dense one are timed beside each other, in sessions of their
own.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _hardware_device import ANYHOW, cores, on_core, timed
from _hardware_networks import config, prepared
from _record import RESULTS, show

from orchestrator import api
from orchestrator.preparation import Prepared
from search_spaces.rank_space import RankVector, rank_vector_from
from workers.timing.contract import Workload
from workers.timing.workloads import network_workload

__all__ = ["PUBLISHED", "QUICK", "Resnet18Size", "measure", "show_found"]

PUBLISHED: Mapping[str, float] = {"V100": 1.46, "TX2": 1.75, "Eyeriss": 2.03}
"""HALOC's throughput over the dense network's (arXiv 2301.09422)."""

_SCORED = 8
"""Random images that candidates are scored on: their scores decide nothing."""


@dataclass(frozen=True)
class Resnet18Size:
    """How much is measured.

    Attributes:
        network: `resnet18`; in the short form the small one.
        macs: the most that the network may take: HALOC's 553 of 1,814 million.
        throughput: the least, over the dense network's.
        method: of both searches; by curves.
        backend: eager torch in the short form, because it builds at once.
        batch_size: images per call.
        sessions: of the final comparison.
        timing: what differs in the config's `timing`.
        kept: whether runs are kept below benchmarks/results/hardware/, so that a later run of the part goes on.
    """

    network: str = "resnet18"
    macs: int = 553_000_000
    throughput: float = 2.0
    method: str = "alds"
    backend: str = "onnxruntime"
    batch_size: int = 1
    sessions: int = 3
    timing: Mapping[str, Any] | None = None
    kept: bool = True


QUICK = Resnet18Size(
    network="small",
    macs=40_000_000,
    throughput=1.2,
    backend="torch",
    sessions=1,
    kept=False,
    timing={
        "calibration": 3,
        "ranks_per_layer": 4,
        "rounds": 2,
        "proposals": 1,
        "protocol": ANYHOW,
    },
)


def measure(size: Resnet18Size, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """Both searches, and the networks beside each other. Searches that were stopped are gone on with."""
    core = cores()[0]
    found: dict[str, Any] = {
        "random": "IMAGENET" not in os.environ or size.network != "resnet18",
        "published": dict(PUBLISHED),
    }
    with TemporaryDirectory() as temporary:
        folder = RESULTS / "hardware" if size.kept else Path(temporary)
        runs = {name: _searched(size, name, core, folder, random=found["random"]) for name in ("latency", "macs")}
    found["searches"] = {name: _told(run) for name, run in runs.items()}
    keep(found)
    dense = prepared(_config(size, "macs", core, "", random=found["random"]))
    vectors = {"dense": dense.space.dense, **{name: _ranks(run) for name, run in runs.items()}}
    networks = {name: _network(dense, ranks, size.batch_size) for name, ranks in vectors.items()}
    found["networks"] = _beside_each_other(size, core, networks)
    for name, ranks in vectors.items():
        found["networks"][name]["macs"] = dense.space.network_cost("macs", ranks)
    return found


def _config(size: Resnet18Size, name: str, core: int, table: str, *, random: bool) -> dict[str, Any]:
    """A search's config: limited in MACs, and for `latency` in throughput as well."""
    budget: dict[str, Any] = {"macs": size.macs}
    if name == "latency":
        budget["throughput"] = {"cpu": f"{size.throughput:g}x"}
    raw = config(size.network, {"method": size.method, "budget": budget}, count=_SCORED)
    if not random:
        raw["model"] = {"build": "torchvision.models:resnet18", "checkpoint": "resnet18.pt"}
        raw["data"] = {
            "train": {"image_folder": "${IMAGENET}/train"},
            "test": {"image_folder": "${IMAGENET}/val"},
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            "image_size": [224, 224],
            "validation_size": 256,
            "slice_size": 64,
        }
    return {
        **raw,
        "devices": {"cpu": {"backend": size.backend, "cores": [core]}},
        "timing": {"batch_size": size.batch_size, **(size.timing or {}), **({"table": table} if table else {})},
        "cluster": {"evaluators": 1},
    }


def _searched(size: Resnet18Size, name: str, core: int, folder: Path, *, random: bool) -> api.Run:
    """A run to its end: a new one, or what there is of it."""
    raw = _config(size, name, core, str(folder / "latency"), random=random)
    digest = hashlib.blake2b(json.dumps(raw, sort_keys=True).encode(), digest_size=4).hexdigest()
    location = folder / f"{size.network}-{name}-{digest}"
    return api.resume(location) if location.exists() else api.search(raw, location)


def _ranks(run: api.Run) -> RankVector:
    assert run.result is not None
    return rank_vector_from(run.result["ranks"][layer["name"]] for layer in run.space["layers"])


def _told(run: api.Run) -> dict[str, Any]:
    """What a run says of itself."""
    assert run.result is not None
    told = {key: run.result.get(key) for key in ("in_window", "scores")}
    latency = run.result.get("latency", {}).get("cpu")
    if latency is not None:
        keys = ("limit_ms", "predicted_ms", "measured_ms", "dense_ms", "rounds", "calibration")
        told["latency"] = {key: latency[key] for key in keys}
    return told


def _network(dense: Prepared, ranks: RankVector, batch_size: int) -> Workload:
    inputs = dense.validation.example().inputs
    assert not isinstance(inputs, dict)
    return network_workload(dense.model, dense.found.layers, dense.schemes, ranks, inputs.shape[1:], batch_size)


def _beside_each_other(size: Resnet18Size, core: int, networks: Mapping[str, Workload]) -> dict[str, dict[str, Any]]:
    """Medians over sessions, in each of which all networks are timed in the same rounds."""
    rules = (size.timing or {}).get("protocol", {})
    ms: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(size.sessions):
        session = timed(on_core(core, size.backend), list(networks.values()), rules)
        for name, network in networks.items():
            told = session.final[network]
            if told.ok and told.spread is not None:
                ms[name].append(told.spread.median_ms)
    found: dict[str, dict[str, Any]] = {}
    for name, times in ms.items():
        rate = [1e3 * size.batch_size / one for one in times]
        median = statistics.median(rate) if rate else None
        found[name] = {"sessions": len(rate), "per_second": rate, "per_second_median": median}
    dense = found["dense"]["per_second_median"]
    for one in found.values():
        median = one["per_second_median"]
        one["over_dense"] = None if median is None or dense is None else median / dense
    return found


def show_found(found: Mapping[str, Any]) -> None:
    """Prints throughputs, beside HALOC's."""
    rows = []
    for name, title in (("dense", "dense"), ("latency", "MACs and throughput"), ("macs", "MACs alone")):
        one = found["networks"][name]
        rate, ratio = one["per_second_median"], one["over_dense"]
        cells = ["not measured" if rate is None else f"{rate:.2f}", "" if ratio is None else f"{ratio:.2f}x"]
        rows.append([title, f"{one['macs'] / 1e6:.0f}", *cells])
    show("Measured throughput, by what the search was limited in", ["", "MACs, M", "images/s", ""], rows)
    print(f"HALOC, published: {', '.join(f'{ratio:g}x on {name}' for name, ratio in found['published'].items())}")
    if found["random"]:
        print("weights and images were random (no IMAGENET): the ranks' quality means nothing here, the clock does")
    if not found["searches"]["latency"]["in_window"]:
        print("no network was measured to be within the budget; what came closest is shown")
