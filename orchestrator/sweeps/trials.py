"""A trial as the sweep's files describe it, and a text for its budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.searches.limits import Bound, limit_of
from search_spaces.latency import limited_device

__all__ = ["LATENCY", "Trial", "budget_text", "limited_devices", "timed_device"]

LATENCY = "latency_ms@"
"""What the column of a device's measured times begins with."""


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        number: counts the sweep's trials from 0; Optuna's number where it proposes.
        method: its name in `sweep.methods`.
        trainable: the training method's registered name.
        scheme: how layers are factorised.
        settings: of the training method, defaults written out, in JSON's types.
        budget: limits by cost.
        seed: of the training.
        ranks_from: what its rank vector comes from: `search`, a search's name, or a run; None where it needs none.
    """

    number: int
    method: str
    trainable: str
    scheme: str
    settings: Mapping[str, Any]
    budget: Mapping[str, Bound]
    seed: int
    ranks_from: str | None = None

    @property
    def name(self) -> str:
        """Names its folder: `0007-bsr-macs0.5-s0`."""
        limits = "+".join(f"{cost}{_plain(bound)}" for cost, bound in self.budget.items())
        return f"{self.number:04d}-{self.method}-{re.sub(r'[^A-Za-z0-9_.+@-]', '', limits)}-s{self.seed}"

    @property
    def definition(self) -> dict[str, Any]:
        """All that its result depends on, apart from model, data and ranks: two trials alike in it are the same."""
        return {name: value for name, value in asdict(self).items() if name not in ("number", "method")}

    def as_json(self) -> dict[str, Any]:
        """In JSON's types."""
        return asdict(self)


def budget_text(budget: Mapping[str, Bound]) -> str:
    """A budget as text: `macs 0.5`."""
    return ", ".join(f"{cost} {_plain(bound)}" for cost, bound in budget.items())


def limited_devices(budget: Mapping[str, Bound]) -> tuple[str, ...]:
    """The devices whose latency or throughput a budget limits."""
    named = (limited_device(limit_of(cost, bound, 1).cost) for cost, bound in budget.items())
    return tuple(name for name in named if name is not None)


def timed_device(column: str) -> str | None:
    """The device whose measured times a column of `trials.parquet` has; None for others."""
    return column.removeprefix(LATENCY) if column.startswith(LATENCY) else None


def _plain(bound: Bound) -> str:
    """A limit's value without rounding: `0.5`, `1200000`."""
    if isinstance(bound, str):
        return bound
    return str(int(bound)) if bound == int(bound) else repr(float(bound))
