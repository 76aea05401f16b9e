"""What trained networks take: every finished trial's is timed whole on the devices of its sweep. Knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.hardware.latency_step import whole_network
from orchestrator.hardware.run_memory import RunMemory, timing_of
from orchestrator.preparation import Prepared
from orchestrator.storage import Storage
from orchestrator.sweeps.material import Material
from orchestrator.sweeps.outcomes import LOST
from orchestrator.sweeps.timed_budgets import budget_key, time_dense
from orchestrator.sweeps.trained import trained_network
from orchestrator.sweeps.trials import Trial
from search_spaces.errors import MeasurementError
from search_spaces.rank_space import RankVector, rank_vector_from
from search_spaces.schemes.registry import schemes
from workers.timing.contract import Workload
from workers.timing.workloads import NetworkWorkload

__all__ = ["TrialTimes", "awaits_timing"]


def awaits_timing(result: Mapping[str, Any] | None, devices: Sequence[str]) -> bool:
    """Whether a trial has finished and its network is not timed on all devices, or one of them was lost meanwhile."""
    if result is None or result["status"] != "finished":
        return False
    known = result.get("latency", {})
    return any(device not in known or known[device]["reason"].startswith(LOST) for device in devices)


@dataclass(frozen=True)
class TrialTimes:
    """Times networks by the protocol and the table that all measurements go by; none is measured twice.

    While it does, whoever runs the trials waits, so that trials on the same machine finish their epochs and leave the
    device alone.

    Attributes:
        base: the sweep's network and config.
        material: of the trials, with its timed budgets.
        place: where trials write.
        devices: names.
        memory: measures.
    """

    base: Prepared
    material: Material
    place: Storage
    devices: tuple[str, ...]
    memory: RunMemory

    def of(self, trial: Trial, result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """`latency` of a finished trial's result: by device what was measured, or why nothing was.

        Args:
            result: its `result.json`.
        """
        ranks = rank_vector_from(result["ranks"][layer.name] for layer in self.material.found.layers)
        filters = bool(result["structure"].get("filters"))
        workload = self._workload(trial, result, ranks, filters)
        return {device: self._timed(device, workload, trial, None if filters else ranks) for device in self.devices}

    def _timed(self, device: str, workload: Workload, trial: Trial, ranks: RankVector | None) -> dict[str, Any]:
        try:
            dense_ms = time_dense(self.base, device, self.memory)
            (measurement,) = self.memory.measure({device: [workload]})[device]
        except MeasurementError as error:
            return {**self._limits(trial, device, ranks), "measured_ms": None, "reason": f"{LOST}{error}"}
        self.memory.keep()
        timing = timing_of(measurement)
        return {
            **self._limits(trial, device, ranks),
            "dense_ms": dense_ms,
            "measured_ms": None if timing is None else timing.ms,
            "low_ms": None if timing is None else timing.low_ms,
            "high_ms": None if timing is None else timing.high_ms,
            "reason": "" if timing is not None else f"{device}: {measurement.status}: {measurement.reason}",
        }

    def _limits(self, trial: Trial, device: str, ranks: RankVector | None) -> dict[str, Any]:
        """What the trial's budget allows on a device, and what its ranks are predicted to take there."""
        budget = self.material.timed.get(budget_key(trial.scheme, trial.budget))
        model = None if budget is None else next((one for one in budget.models if one.device == device), None)
        if budget is None or model is None:
            return {"limit_ms": None, "predicted_ms": None}
        known = ranks is not None and budget.knows(ranks)
        return {"limit_ms": model.limit_ms, "predicted_ms": model.predicted_ms(ranks) if ranks and known else None}

    def _workload(self, trial: Trial, result: Mapping[str, Any], ranks: RankVector, filters: bool) -> NetworkWorkload:
        """The network as it is timed: where all filters are left its ranks say what it is."""
        chosen = (schemes().get(trial.scheme, "sweep.scheme"),) * len(ranks)
        if not filters:
            return whole_network(replace(self.base, schemes=chosen), ranks)
        like = whole_network(self.base, self.base.space.dense)
        return replace(like, module=trained_network(trial, self.material, result, self.place), macs=0)
