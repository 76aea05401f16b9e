"""`rankray measure`: the layers of a config's network, dense and at some ranks, on all its devices."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config.loading import dump_config
from orchestrator.config.schema import ClusterSettings, Config
from orchestrator.hardware.devices import devices_of
from orchestrator.hardware.latency_table import Contradiction, LatencyTable
from orchestrator.hardware.measurement_log import MeasurementLog
from orchestrator.hardware.measuring import Outcome, Watcher, measurer_on
from orchestrator.preparation import Prepared, prepare
from orchestrator.ray_cluster import connect
from orchestrator.storage import Storage
from orchestrator.termination import termination_interrupts
from search_spaces.errors import RunInterruptedError
from workers.timing.local_way import rules_from
from workers.timing.workloads import LayerWorkload, layer_workloads

__all__ = ["CHECKED", "Measured", "layer_sweep", "run_measure"]

CHECKED = 0.05
"""Share of known entries that `--check` measures again."""


@dataclass(frozen=True)
class Measured:
    """What a `measure` came to.

    Attributes:
        location: of the run, with its `measurements/`.
        table: of the latencies.
        entries: that it has.
        contradictions: entries that were set aside.
    """

    location: str
    table: str
    entries: int
    outcome: Outcome
    contradictions: tuple[Contradiction, ...]

    @property
    def unmeasured(self) -> int:
        """Workloads that no device was left for, over all devices."""
        return sum(one is None for found in self.outcome.measurements.values() for one in found)


def run_measure(config: Config, location: str, watcher: Watcher, *, check: bool = False) -> Measured:
    """Fills the latency table with what it lacks.

    Args:
        location: of the run, for what was measured and of no use.
        check: whether to measure a few known entries again.

    Raises:
        ConfigError: before anything is measured, naming what is wrong.
        RunInterruptedError: Ctrl-C, or SIGTERM; what was measured is in the table.
    """
    storage = Storage(location, again="rankray measure")
    storage.check_empty()
    devices = devices_of(config.devices)
    rules_from(config.timing.rules)
    LatencyTable(config.timing.table)
    workloads = layer_sweep(prepare(config), config.timing.ranks, config.timing.batch_size)
    storage.create()
    storage.write("config.yaml", dump_config(config).encode())
    log = MeasurementLog(storage)
    # Evaluators are not needed, so whether they fit does not matter.
    with (
        connect(ClusterSettings(address=config.cluster.address)) as cluster,
        termination_interrupts(),
        measurer_on(cluster, devices, config.timing, run=storage.name, log=log, watcher=watcher) as measurer,
    ):
        try:
            outcome = measurer.measure_all(
                {name: workloads for name in devices}, check=CHECKED if check else 0.0, seed=config.search.seed
            )
        except KeyboardInterrupt:
            raise RunInterruptedError(
                f"interrupted; what was measured is in {config.timing.table}, and the same command goes on"
            ) from None
        table = measurer.table
        return Measured(location, table.location, len(table), outcome, tuple(table.contradictions()))


def layer_sweep(prepared: Prepared, step: int, batch_size: int) -> list[LayerWorkload]:
    """Every layer dense, at the multiples of a step on its ladder, and at the highest rank that shrinks it.

    Layers of one shape are one workload.
    """
    found: dict[LayerWorkload, None] = {}
    for layer, scheme, ranks in zip(prepared.found.layers, prepared.schemes, prepared.space.layers, strict=True):
        rungs = {*range(step, ranks.useful + 1, step), ranks.useful} - {0}
        for rank in (None, *(ranks.at(rung) for rung in sorted(rungs))):
            found.update(dict.fromkeys(layer_workloads(layer, scheme.name, rank, batch_size)))
    return list(found)
