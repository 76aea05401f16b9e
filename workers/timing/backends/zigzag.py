"""`zigzag`: estimated cycles on an Eyeriss-like array of 14 x 12 processing elements, by the cost model ZigZag.

Nothing is timed. ZigZag (Mei et al., IEEE Transactions on Computers 2021) searches, for one layer, the mapping onto the
array and its memories with the fewest cycles; a program's cycles are the sum of its convolutions' and linear layers',
at 8 bits. What else a network has (normalisation, pooling, additions) costs nothing here. The groups of a grouped
convolution run one after another.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import nn

from search_spaces.errors import ConfigError, MeasurementError
from workers.causes import cause
from workers.timing.backends.needs import check_options, need, version_of
from workers.timing.contract import Device, Program, Spread

__all__ = ["Loops", "ZigZag", "loops"]

_HARDWARE = "inputs/hardware/eyeriss_like.yaml"  # in ZigZag's package
_MODEL = "Eyeriss-like 14x12 array"
_INSTALL = '"rankray[asic]" (Python 3.11 or later)'
_CLOCK_MHZ = 200.0  # of Eyeriss' core, Chen et al. 2016
_LPF_LIMIT = 4
_SPATIAL_MAPPINGS = 3


@dataclass(frozen=True)
class Loops:
    """A convolution as the loops that run on the array; a linear layer is a 1 x 1 convolution over its positions.

    Attributes:
        samples, filters, channels: of one group.
        height, width: of the outputs.
        kernel, stride, dilation: of the height, of the width.
        groups: as many times the loops run.
    """

    samples: int
    filters: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class ZigZag:
    """Estimates; see the module.

    Options: `clock_mhz` (200) turns cycles into milliseconds; `lpf_limit` (4) bounds the search for temporal mappings:
    a larger one takes longer and changes results by some percent at most.
    """

    name = "zigzag"

    def versions(self, device: Device) -> Mapping[str, str]:
        """Of ZigZag, with the settings of its search; the clock is the device model's."""
        _, lpf_limit = _settings(device)
        need("six", self.name, _INSTALL)  # that ZigZag 3.9 needs without saying so
        need("zigzag", self.name, _INSTALL)
        return {
            "zigzag": version_of("zigzag-dse"),
            "mapping": f"automatic, best of {_SPATIAL_MAPPINGS}, lpf_limit {lpf_limit}",
            "bits": "8",
            "groups": "one after another",
        }

    def device_model(self, device: Device) -> str:
        """What is estimated, with its clock."""
        return f"{_MODEL} at {_settings(device)[0]:g} MHz"

    def estimate(self, program: Program, device: Device) -> Spread:
        """Milliseconds of a program: cycles over the clock."""
        self.versions(device)
        clock_mhz, lpf_limit = _settings(device)
        found = loops(program)
        if not found:
            raise MeasurementError(
                device.name, "the program calls no Conv2d and no Linear; zigzag estimates only those"
            )
        try:
            cycles = sum(one.groups * _cycles(one, lpf_limit) for one in found)
        except Exception as error:
            raise MeasurementError(device.name, f"zigzag: {cause(error)}") from error
        ms = cycles / (clock_mhz * 1e3)
        return Spread(ms, ms, ms, ms, ms, ms, blocks=1, rejected=0, calls=1)


def loops(program: Program) -> list[Loops]:
    """Every call of a convolution or linear layer in one forward pass, in order."""
    found: list[Loops] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        found.append(_convolution(module, outputs) if isinstance(module, nn.Conv2d) else _linear(module, outputs))

    hooks = [
        module.register_forward_hook(note)
        for module in program.module.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            program.module(program.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _convolution(layer: nn.Conv2d, outputs: torch.Tensor) -> Loops:
    samples, filters, height, width = outputs.shape
    kernel, stride, dilation = ((size[0], size[1]) for size in (layer.kernel_size, layer.stride, layer.dilation))
    groups = layer.groups
    channels = layer.in_channels // groups
    return Loops(samples, filters // groups, channels, height, width, kernel, stride, dilation, groups)


def _linear(layer: nn.Module, outputs: torch.Tensor) -> Loops:
    assert isinstance(layer, nn.Linear)
    positions = outputs.numel() // (len(outputs) * layer.out_features) if outputs.dim() > 1 else 1
    return Loops(len(outputs) if outputs.dim() > 1 else 1, layer.out_features, layer.in_features, 1, positions)


def _settings(device: Device) -> tuple[float, int]:
    """Clock in MHz and the limit of the search, both checked."""
    check_options(device, ("clock_mhz", "lpf_limit"))
    clock_mhz = _positive(device, "clock_mhz", _CLOCK_MHZ)
    lpf_limit = _positive(device, "lpf_limit", _LPF_LIMIT)
    if lpf_limit != int(lpf_limit):
        raise ConfigError(f"devices.{device.name}.options.lpf_limit", f"must be a whole number, not {lpf_limit!r}")
    return clock_mhz, int(lpf_limit)


def _positive(device: Device, option: str, default: float) -> float:
    value = device.options.get(option, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"devices.{device.name}.options.{option}", f"must be a positive number, not {value!r}")
    return float(value)


@cache
def _cycles(one: Loops, lpf_limit: int) -> float:
    """Of one group, with loading and unloading; seconds to a minute of search."""
    from zigzag.mapping.temporal_mapping import TemporalMappingType
    from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
    from zigzag.stages.main import MainStage
    from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
    from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
    from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
    from zigzag.stages.parser.workload_parser import WorkloadParserStage
    from zigzag.stages.results.reduce_stages import MinimalLatencyStage, SumStage
    from zigzag.stages.workload_iterator import WorkloadStage

    logging.getLogger("zigzag").setLevel(logging.ERROR)  # it notes every default that it takes
    stages: list[Any] = [
        WorkloadParserStage,
        AcceleratorParserStage,
        SumStage,
        WorkloadStage,
        MinimalLatencyStage,
        SpatialMappingGeneratorStage,
        MinimalLatencyStage,
        TemporalMappingGeneratorStage,
        CostModelStage,
    ]
    with (
        resources.as_file(resources.files("zigzag").joinpath(_HARDWARE)) as hardware,
        resources.as_file(resources.files("workers.timing.backends").joinpath("zigzag_mapping.yaml")) as mapping,
    ):
        main: Any = MainStage(
            stages,
            workload=[_layer(one)],
            accelerator=str(hardware),
            mapping=str(mapping),
            loma_lpf_limit=lpf_limit,
            loma_show_progress_bar=False,
            nb_mappings_generated=_SPATIAL_MAPPINGS,
            enable_mix_spatial_mapping=False,
            temporal_mapping_type=TemporalMappingType.UNEVEN,
        )
        [(evaluation, _)] = main.run()
    return float(evaluation.latency_total2)


def _layer(one: Loops) -> dict[str, Any]:
    """One group as ZigZag describes a layer; padding moves no loop."""
    (stride_y, stride_x), (dilation_y, dilation_x) = one.stride, one.dilation
    return {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
        "dimension_relations": [
            f"ix={stride_x}*ox+{dilation_x}*fx",
            f"iy={stride_y}*oy+{dilation_y}*fy",
        ],
        "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [one.samples, one.filters, one.channels, one.height, one.width, *one.kernel],
        "operand_precision": {"W": 8, "I": 8, "O": 16, "O_final": 8},
        "operand_source": {"I": 0, "W": 0},
    }
