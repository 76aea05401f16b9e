"""A measurer whose device pads channels to multiples of a step: times by formula, of real workloads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from search_spaces.layers import Stage
from workers.timing.contract import Measurement, Spread, Status, Workload
from workers.timing.workloads import LayerWorkload, NetworkWorkload


@dataclass
class PaddingDevice:
    """ns by padded multiply-accumulates; a network has an overhead, and its layers a little less than by themselves.

    Attributes:
        step: channels are padded to multiples of it.
        failing: subjects (part of the text) that give no good measurement.
        slow: device and subject (part of the text) of layers that take ten times as long.
        asked: workloads in the order of measuring, by device.
    """

    step: int = 8
    failing: Sequence[str] = ()
    slow: tuple[str, str] | None = None
    asked: list[tuple[str, Workload]] = field(default_factory=list)

    def measure_all(self, wanted: Mapping[str, Sequence[Workload]]) -> dict[str, list[Measurement]]:
        return {device: [self._measured(device, one) for one in workloads] for device, workloads in wanted.items()}

    def _measured(self, device: str, workload: Workload) -> Measurement:
        self.asked.append((device, workload))
        ms = self.network_ms(workload) if isinstance(workload, NetworkWorkload) else self.layer_ms(workload)
        if self.slow is not None and self.slow[0] == device and self.slow[1] in workload.subject:
            ms *= 10
        bad = any(text in workload.subject for text in self.failing)
        status: Status = "noisy" if bad else "ok"
        spread = None if bad else Spread(ms, 0.995 * ms, 1.005 * ms, 0.99 * ms, 1.01 * ms, 0.99 * ms, 11, 0, 4)
        return Measurement(
            workload.kind, workload.subject, workload.batch_size, "float32", "made_up", 1, device, "made up", "", {},
            status, "too many blocks were disturbed" if bad else "", spread,
        )  # fmt: skip

    def layer_ms(self, workload: Workload) -> float:
        assert isinstance(workload, LayerWorkload)
        size, total = (workload.height, workload.width), 0.004
        for stage in workload.stages:
            size = stage.output_size(*size)
            total += self._stage_ms(stage, size[0] * size[1] * workload.batch_size)
        return total

    def network_ms(self, workload: NetworkWorkload) -> float:
        total = 0.02
        sizes: list[tuple[Stage, int]] = []

        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            weight = module.get_parameter("weight")
            kernel = tuple(weight.shape[2:]) or (1, 1)
            stage = Stage(weight.shape[1], weight.shape[0], kernel, linear=not weight.shape[2:])
            sizes.append((stage, output.numel() // weight.shape[0]))

        handles = [
            module.register_forward_hook(record)
            for module in workload.module.modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        with torch.no_grad():
            workload.module(torch.zeros(workload.batch_size, *workload.input_shape))
        for handle in handles:
            handle.remove()
        return total + 0.9 * sum(self._stage_ms(*one) for one in sizes)

    def _stage_ms(self, stage: Stage, positions: int) -> float:
        padded = self.step * math.ceil(stage.out_channels / self.step)
        return 0.002 + 1e-6 * positions * padded * stage.in_channels * stage.kernel[0] * stage.kernel[1]
