"""The factoriser: one Ray task per layer decomposes its weight once; the factors stay in the object store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank
from search_spaces.schemes.bias_correction import correct_biases
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.refit import refit
from search_spaces.schemes.registry import schemes
from workers.shared_tensors import Stored, pack, unpack, weight_of

__all__ = ["Factorising", "factorise", "factorise_in_parallel", "factors_from", "moment_from", "stored_moment"]


@dataclass(frozen=True)
class Factorising:
    """How layers are factorised.

    Attributes:
        whitened: truncations minimise the error of the layer's output, not of its weight.
        fitted: every rank's last stage is fitted to the layer's output.
        corrected: every rank's bias is corrected, so that the layer's mean output is kept.
    """

    whitened: bool = False
    fitted: bool = False
    corrected: bool = False


def factorise(
    layer: Layer,
    scheme_name: str,
    weight: torch.Tensor,
    ranks: Sequence[Rank],
    how: Factorising,
    moment: Moment | None,
) -> Factors:
    """Factors of one layer.

    Args:
        ranks: that will be asked for.
        moment: of the layer's inputs, where `how` needs it.

    Raises:
        ConfigError: the weight is not finite.
    """
    scheme = schemes().get(scheme_name, "search.scheme")
    try:
        factors = scheme.factorise(layer, weight, moment if how.whitened else None, ranks)
        if how.fitted and moment is not None:
            factors = refit(scheme, layer, factors, ranks, weight, moment, with_bias=how.corrected)
        if how.corrected and moment is not None:
            factors = correct_biases(scheme, layer, factors, ranks, weight, moment)
    except ValueError as error:
        raise ConfigError("model.checkpoint", f"layer {layer.name}: {error}") from None
    return factors


def _factorise_stored(
    layer: Layer,
    scheme_name: str,
    ranks: Sequence[Rank],
    how: Factorising,
    threads: int,
    weights: Mapping[str, Stored],
    moment: Mapping[str, Stored] | None,
) -> dict[str, Stored]:
    """The task: weights (of the whole model) and moment are views of the object store; nothing is copied here."""
    torch.set_num_threads(threads)
    known = None if moment is None else moment_from(moment)
    return pack(factorise(layer, scheme_name, weight_of(layer.name, weights), ranks, how, known).tensors())


def factorise_in_parallel(
    layers: Sequence[Layer],
    scheme_names: Sequence[str],
    weights: ray.ObjectRef[Any],
    ranks: Sequence[Sequence[Rank]],
    how: Factorising = Factorising(),
    moments: Sequence[ray.ObjectRef[Any] | None] = (),
    threads: int = 1,
) -> list[ray.ObjectRef[Any]]:
    """Starts one task per layer; returns a reference to each layer's factors, in the layers' order.

    Args:
        ranks: by layer, those that will be asked for.
        moments: by layer, references to what `stored_moment` made; none where `how` needs none.
    """
    task = ray.remote(num_cpus=threads, max_retries=2)(_factorise_stored)
    return [
        task.remote(layer, scheme, offered, how, threads, weights, moment)  # Ray passes the references' values
        for layer, scheme, offered, moment in zip(
            layers, scheme_names, ranks, moments or [None] * len(layers), strict=True
        )
    ]


def factors_from(stored: Mapping[str, Stored]) -> Factors:
    """Views of stored factors."""
    return Factors.from_tensors(unpack(stored))


def stored_moment(moment: Moment) -> dict[str, Stored]:
    """A moment as the object store holds it."""
    return pack({"second": moment.second, "mean": moment.mean, "patches": torch.tensor(moment.patches)})


def moment_from(stored: Mapping[str, Stored]) -> Moment:
    """A view of a stored moment."""
    tensors = unpack(stored)
    return Moment(tensors["second"], tensors["mean"], int(tensors["patches"]))
