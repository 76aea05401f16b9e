"""Sample runs for the report's tests: written to disk as a run directory has them, and read back with pandas.

The layers are those of a ResNet-20 and the costs are counted; the scores follow a formula (accuracy falls as
compression grows), so that the report has a search of real shape to show without running one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from orchestrator.report import RunData

COSTS = ("parameters", "macs", "volume")
DENSE_ACCURACY, DENSE_TEST_ACCURACY = 0.92578125, 0.915

# (name, rows m, columns n of the weight matrix, positions of the output)
_LAYERS = (
    ("conv1", 16, 27, 1024),
    *((f"layer1.{i}.conv{j}", 16, 144, 1024) for i in range(3) for j in (1, 2)),
    ("layer2.0.conv1", 32, 144, 256),
    *((f"layer2.{i}.conv{j}", 32, 288, 256) for i in range(3) for j in (1, 2) if (i, j) != (0, 1)),
    ("layer3.0.conv1", 64, 288, 64),
    *((f"layer3.{i}.conv{j}", 64, 576, 64) for i in range(3) for j in (1, 2) if (i, j) != (0, 1)),
    ("linear", 10, 64, 1),
)
NAMES = tuple(name for name, *_ in _LAYERS)
_M, _N, _POSITIONS = (np.array([layer[index] for layer in _LAYERS]) for index in (1, 2, 3))
_FULL = np.minimum(_M, _N)
_USEFUL = np.minimum(_FULL, (_M * _N - 1) // (_M + _N))


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunData]:
    """Makes a run called `name` by the options of `write_sample_run`; each kind is built once."""
    built: dict[str, RunData] = {}

    def sample(name: str = "resnet20", **options: Any) -> RunData:
        key = json.dumps([name, options])
        if key not in built:
            options.setdefault("settings", ((5, 5), (10, 5)))
            built[key] = read_run(write_sample_run(tmp_path_factory.mktemp("run") / "run", **options), name)
        return built[key]

    return sample


def write_sample_run(
    folder: Path,
    *,
    settings: tuple[tuple[int, int], ...] = ((3, 5), (5, 5), (10, 5)),
    budget: float = 0.5,
    per_level: int = 12,
    seed: int = 0,
    finished: bool = True,
    in_window: bool = True,
) -> Path:
    """Writes `config.yaml`, `space.json`, `evaluations/*.parquet` and, if finished, `result.json`."""
    (folder / "evaluations").mkdir(parents=True)
    reach = budget if finished and in_window else 0.7 * budget
    random = np.random.default_rng(seed)
    for step, beam_size in settings:
        rows = pd.DataFrame(_levels(random, f"s{step}-k{beam_size}", step, reach, per_level))
        rows.to_parquet(folder / "evaluations" / f"{step}-{beam_size}.parquet")
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(settings, budget, seed)))
    (folder / "space.json").write_text(json.dumps(_space()))
    if finished:
        result = _result(read_run(folder).evaluations, budget, seed, in_window)
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def read_run(folder: Path, name: str | None = None) -> RunData:
    """A run as the report takes it."""
    result = folder / "result.json"
    parts = sorted((folder / "evaluations").glob("*.parquet"))
    return RunData(
        name=name or folder.name,
        config=yaml.safe_load((folder / "config.yaml").read_text()),
        space=json.loads((folder / "space.json").read_text()),
        result=json.loads(result.read_text()) if result.exists() else None,
        evaluations=pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
        if parts
        else pd.DataFrame(),
    )


def layer_costs(ranks: list[int | None]) -> dict[str, float]:
    """Cost of the searched layers at one rank vector."""
    r = np.array([0 if rank is None else rank for rank in ranks])
    weights = np.where(r == 0, _M * _N, r * (_M + _N))
    volume = np.where(r == 0, _M, r + _M) * _POSITIONS
    return {
        "parameters": float(weights.sum()),
        "macs": float((weights * _POSITIONS).sum()),
        "volume": float(volume.sum()),
    }


def compressions(ranks: list[int | None]) -> dict[str, float]:
    """C(r) in every cost."""
    dense, now = layer_costs([None] * len(_LAYERS)), layer_costs(ranks)
    return {cost: 1 - now[cost] / dense[cost] for cost in COSTS}


def _levels(random: np.random.Generator, search: str, step: int, reach: float, per_level: int) -> list[dict[str, Any]]:
    """A beam of one that lowers a random layer's rank, with its siblings as rows, until `reach` is passed."""
    ranks, rows = [int(rank) for rank in _FULL], []
    for level in range(400):
        children = []
        for layer in random.permutation(len(_LAYERS)).tolist() * 3:
            child = [max(1, rank - step) if index == layer else rank for index, rank in enumerate(ranks)]
            if compressions(_vector(child))["parameters"] <= reach and child != ranks:
                children.append((layer, child))
        if not children:
            break
        drawn = [_row(random, search, level, ranks, *child) for child in children[:per_level]]
        rows += drawn
        best = max(range(len(drawn)), key=lambda index: np.nan_to_num(drawn[index]["accuracy"], nan=-1.0))
        ranks = children[best][1]
    return rows


def _vector(ranks: list[int]) -> list[int | None]:
    """Dense where the rank would not shrink the layer."""
    return [rank if rank <= most else None for rank, most in zip(ranks, _USEFUL.tolist(), strict=True)]


def _row(
    random: np.random.Generator, search: str, level: int, parent: list[int], layer: int, child: list[int]
) -> dict[str, Any]:
    """One evaluation; one in a hundred fails."""
    vector = _vector(child)
    saved = compressions(vector)
    harm = float(np.mean([0 if r is None else (1 - r / f) ** 3 for r, f in zip(vector, _FULL, strict=True)]))
    accuracy = round(256 * max(0.1, DENSE_ACCURACY - 0.9 * harm - abs(random.normal(0, 0.012)))) / 256
    status, reason = "ok", ""
    if random.random() < 0.01:
        status, reason = [("nan", "outputs are not finite"), ("error", "RuntimeError: CUDA out of memory")][layer % 2]
    failed = status != "ok"
    return {
        "search": search,
        "level": level,
        "parent": _vector(parent),
        "changed": NAMES[layer],
        "ranks": vector,
        "compression": saved["parameters"],
        **{f"compression_{cost}": value for cost, value in saved.items()},
        "accuracy": np.nan if failed else accuracy,
        "loss": np.nan if failed else 2.5 * (1 - accuracy),
        "kl": np.nan if failed else 1.1 * (DENSE_ACCURACY - accuracy) + 0.01,
        "seconds": float(random.lognormal(-3.2, 0.25)),
        "worker": f"evaluator-{layer % 2}",
        "status": status,
        "reason": reason,
    }


def _space() -> dict[str, Any]:
    """`space.json`."""
    layers = [
        {
            "name": name,
            "aliases": [],
            "kind": "linear" if name == "linear" else "conv",
            "scheme": "channel_svd",
            "weight_shape": [m, n] if name == "linear" else [m, n // 9, 3, 3],
            "full_rank": min(m, n),
            "useful_rank": int(useful),
            "dense": {"parameters": m * n, "macs": m * n * positions, "volume": m * positions},
        }
        for (name, m, n, positions), useful in zip(_LAYERS, _USEFUL, strict=True)
    ]
    left_out = [
        {"name": "embed.positions", "reason": "its weight is tied between embed.positions and head.positions"},
        {"name": "stem.depthwise", "reason": "grouped convolution (groups = 16)"},
    ]
    return {"layers": layers, "left_out": left_out, "fingerprints": {"model": "5f1d0c2ab9e7", "data": "c07e91d4"}}


def _config(settings: tuple[tuple[int, int], ...], budget: float, seed: int) -> dict[str, Any]:
    """`config.yaml`."""
    return {
        "model": {"build": "workers.models:cifar_resnet20", "checkpoint": "resnet20.pt"},
        "data": {"train": {"parquet": "train-*.parquet"}, "validation_size": 256},
        "search": {
            "method": "mbs",
            "scheme": "channel_svd",
            "norm": "weight",
            "budget": {"parameters": budget},
            "tolerance": 0.005,
            "settings": [{"step": step, "beam_size": beam_size} for step, beam_size in settings],
            "objective": "accuracy",
            "seed": seed,
        },
        "cluster": {"evaluators": "auto", "threads_per_evaluator": 1},
    }


def _scores(accuracy: float, loss: float) -> dict[str, Any]:
    """The result's scores: those given on the validation data, somewhat worse ones on the test data."""
    return {
        "dense": {
            "validation": {"accuracy": DENSE_ACCURACY, "loss": 0.2507},
            "test": {"accuracy": DENSE_TEST_ACCURACY, "loss": 0.2812},
        },
        "compressed": {
            "validation": {"accuracy": accuracy, "loss": loss},
            "test": {"accuracy": accuracy - 0.0123, "loss": loss + 0.031},
        },
    }


def _result(rows: pd.DataFrame, budget: float, seed: int, in_window: bool) -> dict[str, Any]:
    """`result.json`: the most accurate candidate among the most compressed ones."""
    good = rows[rows["status"] == "ok"]
    near = good[good["compression"] >= good["compression"].max() - 0.005]
    best = near.loc[near["accuracy"].idxmax()]
    ranks = [None if rank is None or rank != rank else int(rank) for rank in best["ranks"]]
    dense, now = layer_costs([None] * len(_LAYERS)), layer_costs(ranks)
    elsewhere = {"parameters": 144.0, "macs": 147456.0, "volume": 16384.0}
    return {
        "method": "mbs",
        "seed": seed,
        "objective": "accuracy",
        "budget": {"parameters": budget},
        "in_window": in_window,
        "search": best["search"],
        "ranks": dict(zip(NAMES, ranks, strict=True)),
        "schemes": dict.fromkeys(NAMES, "channel_svd"),
        "costs": {
            cost: {
                "dense": dense[cost],
                "compressed": now[cost],
                "compression": 1 - now[cost] / dense[cost],
                "network": {"dense": dense[cost] + elsewhere[cost], "compressed": now[cost] + elsewhere[cost]},
            }
            for cost in COSTS
        },
        "scores": _scores(float(best["accuracy"]), float(best["loss"])),
        "evaluations": len(rows),
        "seconds": 123.4,
        "provenance": {
            "versions": {"rankray": "0.1.0", "python": "3.11.2", "torch": "2.15.0", "ray": "2.60.0"},
            "git_commit": "0123abcd",
            "command": "rankray search resnet20.yaml",
            "started": "2026-11-21T08:00:00+00:00",
        },
    }
