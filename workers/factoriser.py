"""The factoriser: one Ray task per layer decomposes its weight once; the factors stay in the object store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch

from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.registry import schemes
from workers.shared_tensors import Stored, pack, unpack

__all__ = ["factorise_in_parallel", "factors_from"]


def factorise_layer(layer: Layer, scheme: str, weights: Mapping[str, Stored], threads: int) -> dict[str, Stored]:
    """Factors of one layer as stored tensors.

    Args:
        weights: of the whole model, by parameter name (views of the object store; nothing is copied to get here).
        threads: torch threads the decomposition may use.

    Raises:
        ConfigError: the weight is not finite.
    """
    torch.set_num_threads(threads)
    name = f"{layer.name}.weight" if layer.name else "weight"
    weight = unpack({name: weights[name]})[name]
    try:
        factors = schemes().get(scheme, "search.scheme").factorise(layer, weight)
    except ValueError as error:
        raise ConfigError("model.checkpoint", f"layer {layer.name}: {error}") from None
    return pack(factors.tensors())


def factorise_in_parallel(
    layers: Sequence[Layer], scheme_names: Sequence[str], weights: ray.ObjectRef[Any], threads: int = 1
) -> list[ray.ObjectRef[Any]]:
    """Starts one task per layer; returns a reference to each layer's factors, in the layers' order."""
    task = ray.remote(num_cpus=threads, max_retries=2)(factorise_layer)
    return [
        task.remote(layer, scheme, weights, threads)  # Ray passes the reference's value
        for layer, scheme in zip(layers, scheme_names, strict=True)
    ]


def factors_from(stored: Mapping[str, Stored]) -> Factors:
    """Views of stored factors."""
    return Factors.from_tensors(unpack(stored))
