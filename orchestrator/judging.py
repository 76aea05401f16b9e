"""What a network scores: on the validation batch, and on the test data, which are looked at once, at a search's end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from workers.batch import Batch, run_model
from workers.import_path import import_object
from workers.scorer import judge_in_slices
from workers.splits import batches

if TYPE_CHECKING:
    from orchestrator.preparation import Prepared

__all__ = ["DenseOnTest", "network_scores"]

TEST_SLICE = 256
"""Samples per forward pass on the test data where the config gives no slice size."""

Scores = dict[str, float] | None
"""`accuracy` and `loss` (mean cross-entropy in nats); None where outputs are not finite."""


class DenseOnTest:
    """What the dense network scores on the test data: taken once for all searches that share both."""

    def __init__(self) -> None:
        self._taken: list[Scores] = []

    def of(self, prepared: Prepared) -> Scores:
        """The scores; the first call takes them."""
        if not self._taken:
            self._taken.append(_judged(prepared, prepared.model, _test_parts(prepared)))
        return self._taken[0]


def network_scores(prepared: Prepared, network: nn.Module) -> dict[str, Scores]:
    """By `validation` and, where there are test data, `test`: a network's scores, by plain forward passes.

    Args:
        network: the dense one, or a compressed one.
    """
    validation = prepared.validation
    size = prepared.config.data.slice_size or len(validation)
    scores = {"validation": _judged(prepared, network, validation.split(size))}
    if prepared.test is not None:
        dense = network is prepared.model
        scores["test"] = (
            prepared.dense_on_test.of(prepared) if dense else _judged(prepared, network, _test_parts(prepared))
        )
    return scores


def _test_parts(prepared: Prepared) -> Iterator[Batch]:
    assert prepared.test is not None
    return batches(prepared.test, prepared.config.data.slice_size or TEST_SLICE)


def _judged(prepared: Prepared, network: nn.Module, parts: Iterable[Batch]) -> Scores:
    metric = import_object(prepared.config.metric, "metric")
    if _takes_channels_last(network, prepared.validation.example()):
        parts = map(Batch.channels_last, parts)
    values = judge_in_slices(network, parts, metric)
    return None if values is None else {name: values[name] for name in ("accuracy", "loss")}


def _takes_channels_last(network: nn.Module, example: Batch) -> bool:
    """Whether a forward runs on images laid out so, which sliced layers take in half the time; `view` may refuse."""
    try:
        with torch.inference_mode():
            run_model(network, example.channels_last().inputs)
    except RuntimeError:
        return False
    return True
