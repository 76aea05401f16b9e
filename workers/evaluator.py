"""The evaluator: a Ray actor that views the shared weights and factors and scores candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from torch import nn

from search_spaces.candidates import Precision, Score
from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.registry import schemes
from workers.allocator import give_back_free_memory
from workers.batch import Batch
from workers.batch_norms import normalise_by_batch
from workers.factoriser import factors_from
from workers.gpu import given_gpu
from workers.import_path import import_object
from workers.scorer import Change
from workers.shared_tensors import Stored, adopt, changed, checksums, unpack
from workers.subject import Subject
from workers.ways import Scorer, Way, make_scorer

__all__ = ["Evaluator", "Shared", "batch_to_tensors", "open_subject", "shared_checksums"]


@dataclass(frozen=True)
class Shared:
    """What all evaluators of a run share: references into the object store, and small descriptions.

    Attributes:
        skeleton: reference to the model without parameter values.
        weights: reference to its parameters, `dict[str, Stored]`.
        factors: references to every layer's factors, in the layers' order.
        batch: reference to the validation batch as stored tensors (`inputs` or `inputs.<name>`, and `labels`).
        checksums: of the weights, all factors and the batch, as they were when they were put.
        layers, schemes: the space's layers and their schemes' names.
        metric: import path of the metric.
        threads: torch threads of an evaluator.
        gpus: that Ray gives an evaluator; above 0 it scores on one.
        slice_size: samples per forward pass, where the user set it.
        way: how candidates are scored; the same for all, so that their scores compare.
        batch_statistics: normalise by the statistics of the validation batch, as if they had been re-estimated.
        stop_by: the objective by which children are stopped early; empty for not at all.
    """

    skeleton: ray.ObjectRef[Any]
    weights: ray.ObjectRef[Any]
    factors: tuple[ray.ObjectRef[Any], ...]
    batch: ray.ObjectRef[Any]
    checksums: dict[str, int]
    layers: tuple[Layer, ...]
    schemes: tuple[str, ...]
    metric: str
    threads: int
    gpus: float = 0.0
    slice_size: int | None = None
    way: Way = "plain"
    batch_statistics: bool = False
    stop_by: str = ""


class Evaluator:
    """Scores candidates; wrap with `ray.remote` to make it an actor.

    Args:
        name: what messages and records call it.
        shared: references to what it views.
    """

    def __init__(self, name: str, shared: Shared) -> None:
        self._name, self._shared, self._views = name, shared, _Views.of(shared)
        self._subject = open_subject(shared, self._views)
        self._scorers: dict[Precision, Scorer] = {"float32": make_scorer(shared.way, self._subject)}

    def ready(self) -> str:
        """Answers with its name once it can score."""
        return self._name

    def score(
        self,
        parent: RankVector,
        changes: Sequence[Change],
        bounds: Sequence[float | None] | None = None,
        precision: Precision = "float32",
    ) -> list[Score]:
        """Scores the children of one parent, in their order. A pure function: asking twice does no harm.

        Args:
            bounds: what each must reach, where that is known; see `Bound`.
            precision: of the passes.
        """
        if precision not in self._scorers:
            self._scorers[precision] = make_scorer(self._shared.way, self._subject, precision)
        scores = self._scorers[precision].score(parent, changes, bounds)
        return [replace(score, worker=self._name, precision=precision) for score in scores]

    def damaged(self) -> list[str]:
        """Names of the shared arrays that are not what they were when they were put; empty when all is well.

        Asked at the end of a level, so it is also the moment to give free memory back.
        """
        give_back_free_memory()
        views = self._views
        now = shared_checksums(self._shared.layers, views.weights, views.factors, views.batch)
        return changed(self._shared.checksums, now)


@dataclass(frozen=True)
class _Views:
    """What is in the object store, as this process reads it."""

    weights: dict[str, Stored]
    factors: list[dict[str, Stored]]
    batch: dict[str, Stored]

    @classmethod
    def of(cls, shared: Shared) -> _Views:
        return cls(ray.get(shared.weights), ray.get(list(shared.factors)), ray.get(shared.batch))


def open_subject(shared: Shared, views: _Views | None = None) -> Subject:
    """What is scored, in this process, with the threads and on the device that an evaluator has.

    Args:
        views: where they are there already.

    Raises:
        ConfigError: the GPU cannot be used.
    """
    torch.set_num_threads(shared.threads)
    stored = views or _Views.of(shared)

    def dense_model() -> nn.Module:
        model = adopt(ray.get(shared.skeleton), unpack(stored.weights))
        if shared.batch_statistics:
            normalise_by_batch(model)
        return model

    batch = batch_from(stored.batch)
    subject = Subject(
        dense_model,
        shared.layers,
        [schemes().get(scheme, "search.scheme") for scheme in shared.schemes],
        {layer.name: factors_from(one) for layer, one in zip(shared.layers, stored.factors, strict=True)},
        batch,
        import_object(shared.metric, "metric"),
        len(batch) if shared.batch_statistics else shared.slice_size,
        shared.stop_by,
    )
    return subject.to(given_gpu()) if shared.gpus else subject


def shared_checksums(
    layers: Sequence[Layer],
    weights: dict[str, Stored],
    factors: Sequence[dict[str, Stored]],
    batch: dict[str, Stored],
) -> dict[str, int]:
    """Checksums of the weights by name, of the factors by `layer:factor`, and of the validation batch."""
    sums = {**checksums(weights), **{f"batch:{name}": value for name, value in checksums(batch).items()}}
    for layer, stored in zip(layers, factors, strict=True):
        sums.update({f"{layer.name}:{name}": value for name, value in checksums(stored).items()})
    return sums


def batch_to_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as named tensors; `batch_from` undoes it."""
    inputs = batch.inputs if isinstance(batch.inputs, dict) else {"": batch.inputs}
    return {**{f"inputs.{name}": tensor for name, tensor in inputs.items()}, "labels": batch.labels}


def batch_from(stored: dict[str, Stored]) -> Batch:
    """The batch whose tensors were stored; views."""
    tensors: dict[str, Any] = unpack(stored)
    labels = tensors.pop("labels")
    inputs = {name.removeprefix("inputs."): tensor for name, tensor in tensors.items()}
    return Batch(inputs[""] if list(inputs) == [""] else inputs, labels)
