"""What is scored: a model whose layers take any rank, a validation batch, and how outputs are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from search_spaces.layers import Layer
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, accuracy
from workers.early_stop import STOP_RULES, StopRule
from workers.scorer import Metric

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """What is scored, all of it on one device.

    Attributes:
        model: makes a fresh copy of the dense network (views of the weights, own buffers).
        layers, schemes, factors, batch, metric: as the scorers take them.
        slice_size: samples per forward pass, where the user set it.
        stop_by: the objective by which children are stopped early; empty for not at all.
    """

    model: Callable[[], nn.Module]
    layers: Sequence[Layer]
    schemes: Sequence[Scheme]
    factors: Mapping[str, Factors]
    batch: Batch
    metric: Metric
    slice_size: int | None
    stop_by: str = ""

    @property
    def device(self) -> torch.device:
        """Where it is scored."""
        return self.batch.labels.device

    def to(self, device: torch.device | str) -> Subject:
        """The same on a device; what is there already is not copied."""
        return replace(
            self,
            model=lambda: self.model().to(device),
            factors={name: one.to(device) for name, one in self.factors.items()},
            batch=self.batch.to(device),
        )

    def first(self, samples: int) -> Subject:
        """The same with the first samples of the batch alone."""
        return replace(self, batch=next(self.batch.split(min(samples, len(self.batch)))))

    @property
    def stop_rule(self) -> StopRule | None:
        """How children are stopped; None where they cannot be, because scores are not sums over single samples.

        Nor on a GPU: passes of many children at once take less time there than looks at few samples of each.
        """
        labels = self.batch.labels
        one_label = labels.dim() == 1 and not labels.is_floating_point() and bool((labels >= 0).all())
        in_slices = self.metric is accuracy and self.slice_size is None and one_label
        return STOP_RULES.get(self.stop_by) if in_slices and self.device.type == "cpu" else None
