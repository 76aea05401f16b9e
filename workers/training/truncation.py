"""From a trained dense network to its factorised one: decompose every layer's weight, keep its rank, assemble."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from search_spaces.assembly import assemble, replace_layers
from search_spaces.moments import Moment
from search_spaces.rank_space import RankVector
from workers.batch import Batch
from workers.factoriser import Factorising, factorise
from workers.moments import second_moments
from workers.training.augmentation import ready
from workers.training.contract import Compressed, Setup
from workers.training.samples import generator

__all__ = ["Norm", "architecture", "truncate"]

Norm = Literal["weight", "activation"]
"""What a truncation minimises: the change of the weight, or of the layer's output on training samples."""

CALIBRATION_SIZE = 512
"""Training samples that a truncation in the activation norm looks at."""


def truncate(network: nn.Module, setup: Setup, ranks: RankVector, norm: Norm = "weight") -> Compressed:
    """The network at these ranks, on the CPU; `network` is left as it is.

    Args:
        network: of the same architecture as the set-up's, with weights of its own.
    """
    dense = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
    truncated = [layer for layer, rank in zip(setup.layers, ranks, strict=True) if rank is not None]
    moments: Mapping[str, Moment] = {}
    if norm == "activation" and truncated:
        moments = second_moments(dense, truncated, _calibration(setup))
    factors = {
        layer.name: factorise(
            layer,
            scheme.name,
            dense.get_parameter(f"{layer.name}.weight"),
            (rank,),
            Factorising(whitened=norm == "activation"),
            moments.get(layer.name),
        )
        for layer, scheme, rank in zip(setup.layers, setup.schemes, ranks, strict=True)
        if rank is not None
    }
    return Compressed(assemble(dense, setup.layers, setup.schemes, ranks, factors), ranks)


def architecture(setup: Setup, ranks: RankVector) -> nn.Module:
    """A network of the shape that `truncate` gives; its cascades are uninitialised."""
    return replace_layers(copy.deepcopy(setup.network).cpu(), setup.layers, setup.schemes, ranks)


def _calibration(setup: Setup) -> Batch:
    count = min(CALIBRATION_SIZE, len(setup.train))
    numbers = torch.randperm(len(setup.train), generator=generator(setup.seed, 0, "calibration"))[:count]
    batch = setup.train.batch(numbers.to(setup.train.labels.device)).to("cpu")
    return Batch(ready(batch.inputs, setup.train.normalisation), batch.labels)
