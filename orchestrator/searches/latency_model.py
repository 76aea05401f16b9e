"""What is known of one limited device: its layers' times, the networks measured on it, and what a search may aim at."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from search_spaces.calibration import Calibration
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.latency import LatencyCost, Timing
from search_spaces.rank_space import RankSpace, RankVector

__all__ = ["LatencyModel", "Network", "Role"]

Role = Literal["calibration", "proposed"]


@dataclass(frozen=True)
class Network:
    """A whole network that was measured.

    Attributes:
        timing: of one batch.
        role: why it was measured: to calibrate, or because a search proposed it.
        predicted_ms: by the calibration of the time, before it was measured; None for those of the first calibration.
    """

    timing: Timing
    role: Role
    predicted_ms: float | None = None


@dataclass(frozen=True)
class LatencyModel:
    """A device's latency, predicted by its layers' times and corrected by the networks that were measured.

    Attributes:
        cost: the layers' times, not calibrated.
        limit_ms: the most that a network may take for one batch.
        networks: measured ones by rank vector, in the order of measuring; the dense one is among them.
        aim_ms: the predicted latency that a search may go up to, so that `limit_ms` is measured.
    """

    cost: LatencyCost
    limit_ms: float
    networks: Mapping[RankVector, Network]
    aim_ms: float

    @property
    def device(self) -> str:
        """The device's name."""
        return self.cost.device

    @cached_property
    def calibration(self) -> Calibration:
        """Fitted to all networks that were measured."""
        sums = [self.cost.sum_ms(ranks) for ranks in self.networks]
        return Calibration.fit(sums, [one.timing.ms for one in self.networks.values()])

    @cached_property
    def calibrated(self) -> LatencyCost:
        """The cost with the calibration's slope and intercept."""
        return self.cost.calibrated(self.calibration)

    @property
    def dense_ms(self) -> float:
        """What the dense network was measured to take."""
        return self.networks[(None,) * len(self.cost.timings)].timing.ms

    def predicted_ms(self, ranks: RankVector) -> float:
        """What a network is predicted to take."""
        return self.calibration.predict(self.cost.sum_ms(ranks))

    def within(self, ranks: RankVector) -> bool:
        """Whether a network was measured, and takes no more than the limit."""
        return ranks in self.networks and self.networks[ranks].timing.ms <= self.limit_ms

    def with_proposals(self, measured: Mapping[RankVector, Timing]) -> LatencyModel:
        """The model refitted with networks that a search proposed, and its aim translated.

        Near the budget the fit may be off by a few percent in one direction; by how much is what the proposals say. So
        the next aim is the limit times predicted over measured, the median of the latest proposals.
        """
        if not measured:
            return self
        fresh = {ranks: Network(one, "proposed", self.predicted_ms(ranks)) for ranks, one in measured.items()}
        refitted = replace(self, networks={**self.networks, **fresh})
        # Of the refitted model: its predictions are what the next search goes by.
        ratios = [refitted.predicted_ms(ranks) / one.ms for ranks, one in measured.items()]
        return replace(refitted, aim_ms=self.limit_ms * statistics.median(ratios))

    def tightened(self, answer: RankVector) -> LatencyModel:
        """With an aim that lies below a network which was measured to miss the limit, by at least as much as it did.

        Without it a refit that hardly moves would have the same network proposed for ever. The model itself where the
        network was not measured, or does not miss.
        """
        if answer not in self.networks or self.within(answer):
            return self
        missed = self.networks[answer].timing.ms / self.limit_ms
        most = self.calibration.predict(self.cost.sum_ms(answer) / max(missed, 1.0 + _LEAST_MOVE))
        return replace(self, aim_ms=min(self.aim_ms, most))

    def target(self, space: RankSpace) -> float:
        """C_d of this cost: what the layers may take, in (0, the most that the space's cheapest ranks reach]."""
        wanted = 1.0 - self.calibration.sum_for(self.aim_ms) / self.cost.dense_sum_ms
        reach = space.compression(self.cost.name, space.cheapest(self.cost.name))
        return min(max(wanted, _NEARLY_DENSE), reach - _ROUNDING)

    def check_reach(self, space: RankSpace) -> None:
        """Makes sure, before anything is scored, that the limit asks for something and that it can be met.

        Raises:
            InfeasibleBudgetError: neither a prediction nor a measured network is within it, or the dense one is.
        """
        key = f"search.budget.{self.cost.name}"
        if self.dense_ms <= self.limit_ms:
            raise InfeasibleBudgetError(
                key,
                f"the dense network already takes {self.dense_ms:.4g} ms, within {self.limit_ms:.4g} ms; ask for less",
                {self.cost.name: 0.0},
            )
        cheapest = space.cheapest(self.cost.name)
        fastest = min(self.predicted_ms(cheapest), *(one.timing.ms for one in self.networks.values()))
        if fastest > self.limit_ms:
            raise InfeasibleBudgetError(
                key,
                f"no rank vector meets {self.limit_ms:.4g} ms; the closest that can be reached is {fastest:.4g} ms "
                f"(dense: {self.dense_ms:.4g} ms)",
                {self.cost.name: space.compression(self.cost.name, cheapest)},
            )

    def record(self, answer: RankVector) -> dict[str, Any]:
        """For `result.json`: an answer's latency, predicted and measured, and all networks behind it."""
        network = self.networks.get(answer)
        timing = None if network is None else network.timing
        predicted = None if network is None else network.predicted_ms
        return {
            "limit_ms": self.limit_ms,
            "predicted_ms": self.predicted_ms(answer) if predicted is None else predicted,
            "measured_ms": None if timing is None else timing.ms,
            "low_ms": None if timing is None else timing.low_ms,
            "high_ms": None if timing is None else timing.high_ms,
            "dense_ms": self.dense_ms,
            "calibration": self.calibration.record(),
            "networks": [
                {
                    "role": one.role,
                    "sum_ms": self.cost.sum_ms(ranks),
                    "predicted_ms": one.predicted_ms,
                    "fitted_ms": self.predicted_ms(ranks),
                    "measured_ms": one.timing.ms,
                    "low_ms": one.timing.low_ms,
                    "high_ms": one.timing.high_ms,
                    "ranks": list(ranks),
                }
                for ranks, one in self.networks.items()
            ],
        }


_LEAST_MOVE = 0.005
"""Share by which an aim is lowered at least when a proposal missed its limit."""

_ROUNDING = 1e-12
"""By which C_d stays below what can be reached: whoever divides costs by what they may be would else see 1 + 2^-52."""

_NEARLY_DENSE = 1e-6
"""C_d where the model says that even the dense network is within a limit that it was measured to miss."""
