"""A device with a known staircase, overhead, interaction and noise, and problems whose latency is measured on it."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.searches.contract import Problem
from orchestrator.searches.latency_model import LatencyModel, Network
from search_spaces.budgets import Budget
from search_spaces.calibration import calibration_networks
from search_spaces.candidates import Score
from search_spaces.error_curves import ErrorCurve
from search_spaces.ladders import with_latency_ladders
from search_spaces.latency import LatencyCost, Timing, latency_name
from search_spaces.rank_space import LayerRanks, Rank, RankSpace, RankVector

FULL = (24, 48, 48, 96, 96, 64)
"""Full ranks of the made-up network's layers."""


@dataclass(frozen=True)
class ParameterCost:
    """Parameters of square matrices."""

    name: str = "parameters"
    elsewhere: float = 0.0

    def of(self, layer: int, rank: Rank | None) -> float:
        side = FULL[layer]
        return float(side * side if rank is None else 2 * side * int(rank))  # type: ignore[arg-type]


@dataclass
class MadeUpDevice:
    """Ranks cost by the step; a network costs its layers, a bit more for each one that is factorised, and an overhead.

    Attributes:
        step: of the staircase.
        overhead_ms: of a network.
        bias: share by which a network takes longer than its layers, the more the more of them are factorised: what a
            line through random networks gets wrong in one direction.
        noise: largest relative error of a measurement.
        failing: share of the networks that cannot be measured.
        timed: networks that were measured, in order.
    """

    name: str = "orin"
    step: int = 16
    overhead_ms: float = 0.4
    bias: float = 0.0
    noise: float = 0.0
    failing: float = 0.0
    timed: list[RankVector] = field(default_factory=list)

    def layer_ms(self, layer: int, rank: Rank | None) -> float:
        side = FULL[layer]
        if rank is None:
            return 0.1 * (side / 16) ** 2 + 0.02
        padded = self.step * math.ceil(int(rank) / self.step)  # type: ignore[arg-type]
        return 2 * 0.1 * (side / 16) * (padded / 16) * 0.75 + 0.05

    def network_ms(self, ranks: RankVector) -> float:
        """What it really takes."""
        total = sum(self.layer_ms(layer, rank) for layer, rank in enumerate(ranks))
        factorised = sum(rank is not None for rank in ranks) / len(ranks)
        return 1.2 * total * (1 + self.bias * factorised**2) + self.overhead_ms

    def time_networks(self, vectors: Sequence[RankVector]) -> list[Timing | None]:
        """Measures networks; the same one always alike, as a table has it."""
        self.timed += vectors
        return [self._measured(ranks) for ranks in vectors]

    def _measured(self, ranks: RankVector) -> Timing | None:
        drawn = random.Random(hashlib.sha256(f"{self.name}{ranks}".encode()).digest())
        if None in ranks and set(ranks) != {None} and drawn.random() < self.failing:
            return None
        ms = self.network_ms(ranks) * (1 + self.noise * drawn.uniform(-1, 1))
        return Timing(ms, 0.995 * ms, 1.005 * ms)

    def cost(self) -> LatencyCost:
        """Every rank of every layer, measured."""
        layers = []
        for layer, full in enumerate(FULL):
            times = {rank: self.layer_ms(layer, rank) for rank in (None, *range(1, full // 2 + 1))}
            layers.append({rank: Timing(ms, 0.995 * ms, 1.005 * ms) for rank, ms in times.items()})
        return LatencyCost(latency_name(self.name), tuple(layers))

    def model(self, space: RankSpace, limit_ms: float, networks: int = 12) -> LatencyModel:
        """Calibrated."""
        chosen = calibration_networks(space, networks, 0)
        timings = dict(zip(chosen, self.time_networks(chosen), strict=True))
        known = {ranks: Network(timing, "calibration") for ranks, timing in timings.items() if timing is not None}
        return LatencyModel(self.cost(), limit_ms, known, limit_ms)


def curves() -> list[ErrorCurve]:
    """The spectra fall like powers."""
    found = []
    for layer, full in enumerate(FULL):
        values = [(position + 1) ** -(0.5 + 0.1 * layer) for position in range(full)]
        whole = math.sqrt(sum(value**2 for value in values))
        errors = [math.sqrt(sum(value**2 for value in values[rank:])) / whole for rank in range(1, full + 1)]
        found.append(ErrorCurve(range(1, full + 1), errors, values))
    return found


def made_problem(devices: Sequence[MadeUpDevice], seed: int = 0) -> Problem:
    """Its space offers the ranks just below the devices' jumps; no limits yet."""
    layers = tuple(LayerRanks(f"layer{index}", full, full // 2) for index, full in enumerate(FULL))
    space = RankSpace(layers, {"parameters": ParameterCost()})
    laddered = with_latency_ladders(space, [device.cost() for device in devices])
    measures = {name: curves() for name in ("max_slice", "frobenius")}
    return Problem(laddered, Budget(()), "kl", seed, measures, [(full, full) for full in FULL])


def score(ranks: RankVector) -> Score:
    """The loss is the sum of the layers' errors, with a pinch of interaction."""
    drawn = random.Random(hashlib.sha256(str(ranks).encode()).digest())
    loss = sum(_errors(layer)[rank] ** 2 for layer, rank in enumerate(ranks)) + 0.001 * drawn.random()
    return Score(ranks, {"accuracy": -loss, "loss": loss, "kl": loss})


def _errors(layer: int) -> Mapping[Rank | None, float]:
    return _KNOWN[layer]


_KNOWN: list[dict[Rank | None, float]] = [
    {None: 0.0, **dict(zip(one.ranks, one.errors, strict=True))} for one in curves()
]
