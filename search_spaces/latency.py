"""Latency as a cost: what a device takes for a layer at each rank, summed over layers and calibrated on networks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from search_spaces.calibration import Calibration
from search_spaces.errors import MeasurementError
from search_spaces.rank_space import Rank, RankVector

__all__ = ["LatencyCost", "Subjects", "Timing", "latency_name", "limited_device"]

_PREFIX = "latency@"

Subjects = Sequence[Mapping[Rank | None, Sequence[Hashable]]]
"""By layer, what is timed for each of its ranks (`None` is dense): one subject for each of the layer's calls."""


@dataclass(frozen=True)
class Timing:
    """A measured time with its confidence interval, all in ms."""

    ms: float
    low_ms: float
    high_ms: float

    def __add__(self, other: Timing) -> Timing:
        """One after the other; the interval is the widest there can be."""
        return Timing(self.ms + other.ms, self.low_ms + other.low_ms, self.high_ms + other.high_ms)


def latency_name(device: str) -> str:
    """Name of the cost that is the latency on a device: `latency@orin`."""
    return _PREFIX + device


def limited_device(cost: str) -> str | None:
    """The device whose latency a cost is; None for other costs."""
    return cost.removeprefix(_PREFIX) if cost.startswith(_PREFIX) else None


@dataclass(frozen=True)
class LatencyCost:
    """A `Cost` in ms: a slope times the sum of what the layers take by themselves, plus what no layer's rank changes.

    It need neither grow with the rank nor lie below the dense layer's. Its C(r) depends on neither slope nor intercept.

    Attributes:
        name: `latency@orin`.
        timings: by layer, of every measured rank and of the dense layer, `None`; all calls of one forward pass.
        slope: ms in the network per ms by itself.
        elsewhere: ms that no layer's rank changes; may be below 0, because layers by themselves pay more overhead.
        step: the device's rank step, for the record.
    """

    name: str
    timings: Sequence[Mapping[Rank | None, Timing]]
    slope: float = 1.0
    elsewhere: float = 0.0
    step: int = 1

    @classmethod
    def of_table(
        cls, device: str, table: Mapping[Hashable, Timing], subjects: Subjects, layers: Sequence[str]
    ) -> LatencyCost:
        """The cost that a table of measurements makes; a rank of which a call was not measured is left out.

        Args:
            table: by subject, for one call.
            layers: names, for messages.

        Raises:
            MeasurementError: a dense layer was not measured: nothing compares without it.
        """
        found = []
        for name, wanted in zip(layers, subjects, strict=True):
            known = {rank: _summed(table, calls) for rank, calls in wanted.items()}
            measured = {rank: timing for rank, timing in known.items() if timing is not None}
            if None not in measured:
                raise MeasurementError(device, f"the dense layer {name} could not be measured; see measurements/")
            found.append(measured)
        return cls(latency_name(device), tuple(found))

    @property
    def device(self) -> str:
        """The device's name."""
        return self.name.removeprefix(_PREFIX)

    def of(self, layer: int, rank: Rank | None) -> float:
        """ms of the layer with this index at one rank.

        Raises:
            KeyError: this rank was not measured.
        """
        return self.slope * self.timings[layer][rank].ms

    def sum_ms(self, ranks: RankVector) -> float:
        """What the layers take by themselves at `ranks`: what a calibration starts from."""
        return sum(layer[rank].ms for layer, rank in zip(self.timings, ranks, strict=True))

    def calibrated(self, calibration: Calibration) -> LatencyCost:
        """The same layers with a calibration's slope and intercept."""
        return replace(self, slope=calibration.slope, elsewhere=calibration.intercept_ms)

    @cached_property
    def dense_sum_ms(self) -> float:
        """`sum_ms` of the dense network."""
        return self.sum_ms((None,) * len(self.timings))


def _summed(table: Mapping[Hashable, Timing], calls: Sequence[Hashable]) -> Timing | None:
    """All calls of a layer one after the other; None if one is not in the table."""
    if not all(subject in table for subject in calls):
        return None
    return sum((table[subject] for subject in calls), Timing(0.0, 0.0, 0.0))
