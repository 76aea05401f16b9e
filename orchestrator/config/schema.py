"""What a config may hold. The `search` block belongs to its method and is checked by that method's own model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from orchestrator.hardware.devices import DeviceSettings, TimingSettings, check_device_names
from orchestrator.searches.settings import SearchSettings, Strict
from search_spaces.budgets import Limit

__all__ = ["ClusterSettings", "Config", "DataSettings", "ModelSettings"]


class ModelSettings(Strict):
    """The network.

    Attributes:
        build: `package.module:callable` that returns it (torchvision's as well: `torchvision.models:resnet18`).
        arguments: keyword arguments of that callable.
        checkpoint: a state dict (`.pt`, loaded with weights only) or `.safetensors`; none keeps what `build` returned.
        new_classes: replaces the last linear layer, after the checkpoint was loaded, by an untrained one with so many
            outputs: for sweeps that move a network to another data set (`transfer_masks`).
    """

    build: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    new_classes: Annotated[int, Field(ge=2)] | None = None


class Normalize(Strict):
    """Per-channel normalisation of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _same_length(self) -> Normalize:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std has {len(self.std)}")
        return self


class DataSettings(Strict):
    """The data.

    Attributes:
        train: where the validation batch is drawn from; see `workers.datasets` for the kinds of source.
        test: what the result is judged on, before and after; never used to choose. None leaves it out.
        normalize: of images from Parquet files, image folders and torchvision.
        image_size: height and width to resize and crop to; None takes images as they are.
        validation_size: images in the validation batch, drawn from train by the search's seed.
        calibration_size: images of the calibration batch, drawn from the rest of train; their labels are not looked
            at. Read only where the search's norm, last stage or batch norms need it.
        slice_size: samples per forward pass; None takes the validation batch at once.
    """

    train: dict[str, Any]
    test: dict[str, Any] | None = None
    normalize: Normalize | None = None
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    validation_size: Annotated[int, Field(ge=1)] = 256
    calibration_size: Annotated[int, Field(ge=1)] = 1024
    slice_size: Annotated[int, Field(ge=1)] | None = None


class ClusterSettings(Strict):
    """Where the work runs.

    Attributes:
        address: of a running Ray cluster; none starts one on this machine (or takes RAY_ADDRESS).
        evaluators: how many, or `auto`: as many as the cluster's free CPUs hold.
        threads_per_evaluator: torch threads, and CPUs that Ray counts, of each.
        gpus_per_evaluator: GPUs that Ray counts of each; above 0 candidates are scored on one, and a fraction lets
            several evaluators share it.
        timeout_s: seconds without an answer after which an evaluator counts as hung.
    """

    address: str | None = None
    evaluators: int | str = "auto"
    threads_per_evaluator: Annotated[int, Field(ge=1)] = 1
    gpus_per_evaluator: Annotated[float, Field(ge=0, le=1)] = 0.0
    timeout_s: Annotated[float, Field(gt=0)] = 300.0

    @field_validator("evaluators", mode="before")
    @classmethod
    def _auto_or_number(cls, value: object) -> object:
        given = int(value) if isinstance(value, str) and value.isdecimal() else value
        if given != "auto" and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise ValueError(f"must be `auto` or a whole number from 1 on, not {value!r}")
        return given


class Config(Strict):
    """A whole config; `search` is the settings model of its method.

    Attributes:
        metric: `package.module:function` of (outputs, batch), on the device that scores; higher is better; recorded as
            `accuracy`.
        devices: what can be timed, by name; without any, this machine's processor.
        timing: how.
    """

    model: ModelSettings
    data: DataSettings
    search: SearchSettings
    metric: str = "workers.batch:accuracy"
    cluster: ClusterSettings = ClusterSettings()
    devices: dict[str, DeviceSettings] = Field(default_factory=dict)
    timing: TimingSettings = TimingSettings()

    @field_validator("devices")
    @classmethod
    def _names_of_devices(cls, devices: dict[str, DeviceSettings]) -> dict[str, DeviceSettings]:
        return check_device_names(devices)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The budget's limits."""
        return self.search.limits(self.timing.batch_size)
