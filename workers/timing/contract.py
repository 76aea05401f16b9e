"""What is timed and what comes back: the contract between whoever wants a measurement and whoever takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # only described here: tables and leases need not wait for torch
    import torch
    from torch import nn

__all__ = [
    "Backend",
    "Clock",
    "Device",
    "Estimator",
    "Measurement",
    "Measurer",
    "Precision",
    "Program",
    "Run",
    "Spread",
    "State",
    "Status",
    "Workload",
]

Precision = Literal["float32", "float16", "bfloat16"]

Status = Literal["ok", "noisy", "throttled", "timeout", "wrong", "error"]
"""How a measurement ended; only `ok` enters a latency table.

`noisy`: the confidence interval never became narrow enough. `throttled`: clocks or temperatures moved. `timeout`: the
device did not answer within its limit. `wrong`: the backend's outputs are not the reference's. `error`: the backend
refuses the workload, or failed.
"""


Clock = Literal["wall", "cpu"]
"""What block times are of: `wall` is the backend's timer (wall clock, or the device's events); `cpu` is the processor
time of the process, which stands in for it where others use the processor all the time (`protocol.py`)."""


@dataclass(frozen=True)
class Program:
    """A workload made real: what a backend builds and what it must give.

    Attributes:
        module: in eval mode, on the CPU.
        inputs: one batch, on the CPU.
        reference: what the *dense* equivalent gives for `inputs` in float32, on the CPU: of a factorised layer, the
            dense layer with the cascade's weights multiplied out.
    """

    module: nn.Module
    inputs: torch.Tensor
    reference: torch.Tensor


class Workload(Protocol):
    """One thing to time; small enough to be sent to a device, picklable.

    Equal if and only if `subject` and `batch_size` are.
    """

    @property
    def kind(self) -> Literal["layer", "network"]:
        """What it is."""

    @property
    def subject(self) -> str:
        """What is timed, as canonical text that is equal if and only if the work of one input is.

        Of a layer, the stages that run (the dense one, or a cascade's), their bias and the input's size: neither its
        name nor its scheme's, so that two schemes that come to the same stages share an entry. Of a network, a digest
        of its architecture.
        """

    @property
    def batch_size(self) -> int:
        """Inputs per call."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one input, by which cheap workloads go first."""

    def program(self) -> Program:
        """Makes module, inputs and reference; the same every time: weights and inputs are drawn by a fixed seed."""


@dataclass(frozen=True)
class Device:
    """A physical thing that is timed, as the config names it.

    Attributes:
        name: as in the config (`orin`, `cpu0`).
        backend: name in the registry of backends (`torch`, `torch_compile`, `onnxruntime`, `openvino`, ...).
        resource: Ray's custom resource (or None) that only nodes with such a device offer; the actor takes 1 of it.
        labels: Ray node labels that the node must have.
        cores: processor cores that the measuring process is pinned to; empty leaves it to the system.
        threads: of the backend.
        accelerator: torch's name of the device on its node (`cpu`, `cuda:0`).
        precision: of weights and activations.
        options: of the backend or of the way there (`ssh`, `python`), checked by whoever takes them.
        time_limit_s: for one workload, build and check included.
    """

    name: str
    backend: str
    resource: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    threads: int = 1
    accelerator: str = "cpu"
    precision: Precision = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    time_limit_s: float = 60.0


Run = Callable[[], None]
"""One call of the built program; it returns when the device is done, unless its backend says how to wait."""


class Backend(Protocol):
    """A way to run a program on a device. Registered under `rankray.backends`.

    An instance serves any number of programs, several of them at once.

    Attributes:
        name: in the registry.
    """

    name: str

    def versions(self) -> Mapping[str, str]:
        """Versions of what runs and of drivers, that decide whether two measurements compare.

        Raises:
            ConfigError: the backend is not installed (what to install is named).
        """

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        """Builds a program for the device.

        Returns:
            A call, which only the backend's own timer makes, and a function that runs once and gives the outputs on
            the CPU in float32.

        Raises:
            ConfigError: the device has an option that the backend does not know, or the backend is not installed.
            MeasurementError: the backend refuses the program.
        """

    def timer(self, device: Device) -> Callable[[Run, int], float]:
        """How blocks are timed: a function of a call and the number of calls that gives the seconds of the block."""


class Estimator(Protocol):
    """A model of a device's cost, where there is nothing to time. Registered under `rankray.estimators`.

    Attributes:
        name: in the registry.
    """

    name: str

    def versions(self, device: Device) -> Mapping[str, str]:
        """Versions and settings that its answers depend on.

        Raises:
            ConfigError: the estimator is not installed (what to install is named), or an option is wrong.
        """

    def device_model(self, device: Device) -> str:
        """What is estimated (`Eyeriss-like 14x12 array at 200 MHz`)."""

    def estimate(self, program: Program, device: Device) -> Spread:
        """Milliseconds of a call; the spread has no width.

        Raises:
            ConfigError: as `versions`.
            MeasurementError: the estimator refuses the program.
        """


@dataclass(frozen=True)
class State:
    """Of a device, just before or after a measurement; None where the machine does not say.

    Attributes:
        clock_mhz: of the cores or the card in use.
        temperature_c: the hottest sensor.
        load: share of the cores that others use, 0 to 1.
        power_mode: governor, power mode or application clocks, as text.
        throttled: whether the device says that it is held back.
    """

    clock_mhz: float | None = None
    temperature_c: float | None = None
    load: float | None = None
    power_mode: str | None = None
    throttled: bool = False


@dataclass(frozen=True)
class Spread:
    """Block times of one workload, all in ms per call.

    Attributes:
        median_ms: what counts.
        low_ms, high_ms: order-statistic confidence interval (95 %) of the median.
        p10_ms, p90_ms, min_ms: of the blocks that were kept.
        blocks: kept.
        rejected: blocks that were thrown away.
        calls: per block.
        clock: what the times are of.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    blocks: int
    rejected: int
    calls: int
    clock: Clock = "wall"


@dataclass(frozen=True)
class Measurement:
    """What a device said of one workload: a row of the latency table if its status is `ok`.

    Attributes:
        kind, subject, batch_size: of the workload.
        precision, backend, threads: of the device as it was set up.
        device: its name in the config.
        device_model: what it physically is (`AMD EPYC 9B14`, `NVIDIA H100`, `Jetson AGX Orin`).
        power_mode: as in `State`; two modes are two devices.
        versions: of backend and drivers; `options` of the backend, where there are any; `timing`, a digest of the
            code that takes measurements.
        status, reason: how it ended; the reason is one line, empty for `ok`.
        spread: None unless blocks were timed.
        before, after: the device's state.
        drift: the reference workload's median beside this workload over its first one in the session; 1.0 where
            nothing moved, NaN where the reference itself could not be timed.
        node: host name.
        taken_at: seconds since the epoch, by the device's clock.
        seconds: that it took.
    """

    kind: str
    subject: str
    batch_size: int
    precision: str
    backend: str
    threads: int
    device: str
    device_model: str
    power_mode: str
    versions: Mapping[str, str]
    status: Status
    reason: str = ""
    spread: Spread | None = None
    before: State = State()
    after: State = State()
    drift: float = 1.0
    node: str = ""
    taken_at: float = 0.0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it may be used."""
        return self.status == "ok"


class Measurer(Protocol):
    """Gets workloads timed; who asks does not see where (an actor, a board behind ssh, a table that knows already)."""

    def measure(self, device: str, workloads: Sequence[Workload]) -> list[Measurement]:
        """One measurement per workload, in their order; failures are measurements too, with a status that says so.

        Args:
            device: name of the device in the config.

        Raises:
            MeasurementError: there is no such device, or none of its kind answers any more.
        """
