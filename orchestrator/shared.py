"""Puts what all evaluators share into the object store: the model, its factors and the validation batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.local_step import Learned, factorising, learn, learn_together
from orchestrator.preparation import Prepared
from search_spaces.rank_space import LayerRanks, Rank, RankSpace
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

    def learn_together(self, group: Sequence[Prepared]) -> list[Learned]:
        """Takes the local step on it once for several searches."""
        return learn_together(group, self.weights, self.skeleton)


def store_model(prepared: Prepared) -> StoredModel:
    """Stores the dense network once."""
    return StoredModel(ray.put(pack(weights_of(prepared.model))), ray.put(skeleton(prepared.model)))


def share(
    prepared: Prepared,
    model: StoredModel | None = None,
    learned: Learned | None = None,
    others: Sequence[RankSpace] = (),
) -> tuple[Shared, list[ray.ObjectRef[Any]]]:
    """Factorises every layer in parallel and stores everything once.

    Args:
        model, learned: where they are there already.
        others: spaces of other searches on the same evaluators: their ranks are offered too.

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
    offered = [_union(layers) for layers in zip(*(space.layers for space in (prepared.space, *others)), strict=True)]
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
        gpus=config.cluster.gpus_per_evaluator,
        slice_size=config.data.slice_size,
        batch_statistics=prepared.batch_statistics,
    )
    return shared, factors


def _union(layers: Sequence[LayerRanks]) -> Sequence[Rank]:
    """Every rank that one of several spaces offers for a layer."""
    return list(dict.fromkeys(rank for layer in layers for rank in layer.offered))
