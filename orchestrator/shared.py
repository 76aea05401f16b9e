"""Puts what all evaluators share into the object store: the model, its factors and the validation batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.local_step import Learned, factorising, learn
from orchestrator.preparation import Prepared
from workers.evaluator import Shared, batch_to_tensors, shared_checksums
from workers.factoriser import factorise_in_parallel
from workers.shared_tensors import pack, skeleton, weights_of
from workers.task_results import results_of

__all__ = ["StoredModel", "share", "store_model"]


@dataclass(frozen=True)
class StoredModel:
    """References to a model in the object store: its parameters, and the model without their values."""

    weights: ray.ObjectRef[Any]
    skeleton: ray.ObjectRef[Any]

    def learn(self, prepared: Prepared) -> Learned:
        """Takes the local step on it."""
        return learn(prepared, self.weights, self.skeleton)


def store_model(prepared: Prepared) -> StoredModel:
    """Stores the dense network once."""
    return StoredModel(ray.put(pack(weights_of(prepared.model))), ray.put(skeleton(prepared.model)))


def share(
    prepared: Prepared, model: StoredModel | None = None, learned: Learned | None = None
) -> tuple[Shared, list[ray.ObjectRef[Any]]]:
    """Factorises every layer in parallel and stores everything once.

    Args:
        model, learned: where they are there already.

    Returns:
        What an evaluator is made from, and the references to the factors, in the layers' order.

    Raises:
        ConfigError: a layer's weight is not finite.
    """
    model = model or store_model(prepared)
    learned = learned or model.learn(prepared)
    prepared = learned.prepared
    config, layers = prepared.config, prepared.found.layers
    names = tuple(scheme.name for scheme in prepared.schemes)
    offered = [layer.offered for layer in prepared.space.layers]
    factors = factorise_in_parallel(layers, names, model.weights, offered, factorising(prepared), learned.moments)
    batch = ray.put(pack(batch_to_tensors(prepared.validation)))
    shared = Shared(
        skeleton=model.skeleton,
        weights=model.weights,
        factors=tuple(factors),
        batch=batch,
        checksums=shared_checksums(layers, ray.get(model.weights), results_of(factors), ray.get(batch)),
        layers=layers,
        schemes=names,
        metric=config.metric,
        threads=config.cluster.threads_per_evaluator,
        slice_size=config.data.slice_size,
        batch_statistics=prepared.batch_statistics,
    )
    return shared, factors
