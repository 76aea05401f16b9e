"""What a run was asked for and what it reached: its method, budget, window and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.report.evaluations import objective_of, rank_list, scored
from orchestrator.report.quantities import count, number, percent, saving
from orchestrator.report.run_data import RunData
from search_spaces.rank_space import Rank, rank_from

__all__ = [
    "budget_text",
    "chosen_ranks",
    "compression",
    "cost_entry",
    "limits",
    "method_name",
    "scheme_text",
    "score",
    "targets",
    "tolerance",
]

_METHODS = {"mbs": "mBS", "alds": "ALDS"}
_NOUNS = {"parameters": "parameters", "macs": "multiply-accumulates", "volume": "activation volume"}


def method_name(run: RunData) -> str:
    """The method as the literature writes it."""
    name = str((run.result or {}).get("method") or _search(run).get("method") or "search")
    return _METHODS.get(name, name)


def scheme_text(run: RunData) -> str:
    """The schemes in use, each once, in the order of the layers."""
    schemes = dict.fromkeys(str(layer["scheme"]) for layer in run.space.get("layers", []) if layer.get("scheme"))
    return ", ".join(schemes) or str(_search(run).get("scheme", ""))


def limits(run: RunData) -> list[tuple[str, Any]]:
    """The budget's limits as (cost, value)."""
    budget = (run.result or {}).get("budget") or _search(run).get("budget") or {}
    listed = budget if isinstance(budget, list) else [budget]
    return [(str(cost), value) for one in listed if isinstance(one, Mapping) for cost, value in one.items()]


def budget_text(run: RunData) -> str:
    """The budget in words: `50.00% fewer parameters`; `at most 1,000,000 parameters`."""
    return " and ".join(_limit_text(cost, value) for cost, value in limits(run)) or "no budget"


def targets(run: RunData) -> dict[str, float]:
    """C_d, the compression asked for, of every limit that is one or can be turned into one."""
    found: dict[str, float] = {}
    for cost, value in limits(run):
        wanted = number(value)
        if wanted is None or "@" in cost:  # a latency is measured; its limit is none on the sum over layers
            continue
        entry = cost_entry(run, cost)
        dense = number(entry.get("dense"))
        network = number((entry.get("network") or {}).get("dense"))
        if wanted < 1:
            found[cost] = wanted
        elif dense and network is not None:
            # An absolute limit counts the whole network; C(r) counts the layers searched.
            found[cost] = 1 - (wanted - (network - dense)) / dense
    return found


def tolerance(run: RunData) -> float:
    """The width tau of the window [C_d - tau, C_d]; 0 where the config has none."""
    return number(_search(run).get("tolerance")) or 0.0


def cost_entry(run: RunData, cost: str) -> Mapping[str, Any]:
    """The result's entry of one cost; empty where there is none."""
    entry = ((run.result or {}).get("costs") or {}).get(cost)
    return entry if isinstance(entry, Mapping) else {}


def compression(run: RunData, cost: str) -> float | None:
    """C(r) of the chosen network."""
    return number(cost_entry(run, cost).get("compression"))


def score(run: RunData, network: str, split: str, metric: str) -> float | None:
    """One score of the result.

    Args:
        network: `dense` or `compressed`.
        split: `validation` or `test`.
        metric: `accuracy`, `loss`, ...
    """
    scores = ((run.result or {}).get("scores") or {}).get(network) or {}
    return number((scores.get(split) or {}).get(metric))


def chosen_ranks(run: RunData) -> dict[str, Rank | None] | None:
    """The rank of every layer: the result's; of an unfinished run those of the candidate that is furthest on.

    Returns:
        None if there is neither. Furthest on: of the search that has compressed the most, the best of its last level.
    """
    if run.result is not None:
        return {name: rank_from(rank) for name, rank in (run.result.get("ranks") or {}).items()}
    rows = scored(run)
    rows = rows[np.isfinite(rows["compression"])]
    if rows.empty:
        return None
    search = rows.loc[rows["compression"].idxmax(), "search"]
    rows = rows[rows["search"] == search]
    last = objective_of(run).best_first(rows[rows["level"] == rows["level"].max()])
    ranks = rank_list(last.iloc[0]["ranks"])
    names = [str(layer["name"]) for layer in run.space.get("layers", [])]
    return dict(zip(names, ranks, strict=True)) if len(ranks) == len(names) else None


def _search(run: RunData) -> Mapping[str, Any]:
    """The config's `search`."""
    search = run.config.get("search")
    return search if isinstance(search, Mapping) else {}


def _limit_text(cost: str, value: Any) -> str:
    """One limit in words."""
    kind, _, device = cost.partition("@")
    if device:
        return _device_limit_text(kind, device, value)
    noun = _NOUNS.get(cost, cost.replace("_", " "))
    if isinstance(value, Mapping):
        return " and ".join(f"{noun} of at most {most} on {device}" for device, most in value.items())
    wanted = number(value)
    if wanted is None:
        return f"{noun} {value}"
    return saving(cost, wanted) if wanted < 1 else f"at most {count(wanted)} {noun}"


def _device_limit_text(kind: str, device: str, value: Any) -> str:
    """A limit on a device in words: `a latency of at most 10 ms on orin`."""
    wanted = number(value)
    if wanted is not None:
        return f"{percent(wanted)} less latency on {device}"
    if str(value).endswith("x"):
        return f"{str(value)[:-1].strip()} times the dense network's throughput on {device}"
    return f"a {kind} of at {'least' if kind == 'throughput' else 'most'} {value} on {device}"
