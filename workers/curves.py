"""Error curves of many layers: one Ray task per layer, ALDS' local step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch

from search_spaces.error_curves import ErrorCurve
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.moments import Moment
from search_spaces.schemes.registry import schemes
from workers.factoriser import moment_from
from workers.shared_tensors import Stored, weight_of
from workers.task_results import results_of

__all__ = ["curves_in_parallel", "curves_of"]


def curves_of(
    layer: Layer, scheme_name: str, weight: torch.Tensor, measures: Sequence[str], moment: Moment | None
) -> dict[str, ErrorCurve]:
    """One layer's curves by measure.

    Args:
        moment: of the layer's inputs, where errors are those of its output.

    Raises:
        ConfigError: the weight is not finite.
    """
    scheme = schemes().get(scheme_name, "search.scheme")
    try:
        return {measure: scheme.error_curve(layer, weight, measure, moment) for measure in measures}
    except ValueError as error:
        raise ConfigError("model.checkpoint", f"layer {layer.name}: {error}") from None


def _curves_stored(
    layer: Layer,
    scheme_name: str,
    measures: Sequence[str],
    weights: Mapping[str, Stored],
    moment: Mapping[str, Stored] | None,
) -> dict[str, ErrorCurve]:
    torch.set_num_threads(1)
    known = None if moment is None else moment_from(moment)
    return curves_of(layer, scheme_name, weight_of(layer.name, weights), measures, known)


def curves_in_parallel(
    layers: Sequence[Layer],
    scheme_names: Sequence[str],
    measures: Sequence[str],
    weights: ray.ObjectRef[Any],
    moments: Sequence[ray.ObjectRef[Any] | None] = (),
) -> list[dict[str, ErrorCurve]]:
    """The curves of all layers, in their order.

    Args:
        weights: reference to the model's stored weights.
        moments: by layer, references to stored moments; none where errors are those of the weights.

    Raises:
        ConfigError: a weight is not finite.
    """
    task = ray.remote(num_cpus=1, max_retries=2)(_curves_stored)
    known = moments or [None] * len(layers)
    started = [
        task.remote(layer, scheme, measures, weights, moment)
        for layer, scheme, moment in zip(layers, scheme_names, known, strict=True)
    ]
    return results_of(started)
