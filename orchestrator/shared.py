"""Puts what all evaluators share into the object store: the model, its factors and the validation batch."""

from __future__ import annotations

from typing import Any

import ray

from orchestrator.preparation import Prepared
from workers.evaluator import Shared, batch_to_tensors, shared_checksums
from workers.factoriser import factorise_in_parallel
from workers.shared_tensors import pack, skeleton, weights_of

__all__ = ["share"]


def share(prepared: Prepared) -> tuple[Shared, list[ray.ObjectRef[Any]]]:
    """Factorises every layer in parallel and stores everything once.

    Returns:
        What an evaluator is made from, and the references to the factors, in the layers' order.
    """
    config = prepared.config
    layers = prepared.found.layers
    names = tuple(scheme.name for scheme in prepared.schemes)
    weights = ray.put(pack(weights_of(prepared.model)))
    factors = factorise_in_parallel(layers, names, weights)
    batch = ray.put(pack(batch_to_tensors(prepared.validation)))
    shared = Shared(
        skeleton=ray.put(skeleton(prepared.model)),
        weights=weights,
        factors=tuple(factors),
        batch=batch,
        checksums=shared_checksums(layers, ray.get(weights), ray.get(factors), ray.get(batch)),
        layers=layers,
        schemes=names,
        metric=config.metric,
        threads=config.cluster.threads_per_evaluator,
        slice_size=config.data.slice_size,
    )
    return shared, factors
