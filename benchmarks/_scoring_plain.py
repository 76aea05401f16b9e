"""The plain pass: what anyone would write first to score a rank vector, and what the fast scorer is compared with.

A truncated weight is multiplied out once per (layer, rank) and kept; that time is not counted. To score a candidate
is to copy the weights that differ from those in place into the unchanged network, and to run it once on the whole
batch: contiguous layout, eval mode, inference mode. This file stays as it is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

import torch
from _scoring_network import Network

from search_spaces.rank_space import Rank, RankVector
from search_spaces.schemes.truncation import multiplied_out
from workers.batch import Batch, accuracy, run_model
from workers.scorer import judge

__all__ = ["PlainPass"]


class PlainPass:
    """The unchanged network on its validation batch."""

    def __init__(self, network: Network) -> None:
        prepared = network.prepared
        self._model = copy.deepcopy(prepared.model).eval().requires_grad_(False)
        self._batch = Batch(_contiguous(prepared.validation), prepared.validation.labels)
        self._layers, self._schemes, self._factors = prepared.found.layers, prepared.schemes, network.factors
        self._weights = [self._model.get_parameter(f"{layer.name}.weight") for layer in self._layers]
        self._multiplied_out: dict[tuple[int, Rank | None], torch.Tensor] = {
            (index, None): weight.clone() for index, weight in enumerate(self._weights)
        }
        self._in_place: list[Rank | None] = [None] * len(self._layers)

    def time(self, ranks: RankVector) -> tuple[float, Mapping[str, float]]:
        """Seconds that scoring a rank vector takes, and what it scores: `accuracy` and `loss`.

        Raises:
            RuntimeError: its outputs are not finite.
        """
        for index, rank in enumerate(ranks):
            self._multiply_out(index, rank)
        started = time.perf_counter()
        with torch.inference_mode():
            for index, rank in enumerate(ranks):
                if rank != self._in_place[index]:
                    self._weights[index].copy_(self._multiplied_out[index, rank])
                    self._in_place[index] = rank
            values = judge(run_model(self._model, self._batch.inputs), self._batch, accuracy, None)
        seconds = time.perf_counter() - started
        if values is None:
            raise RuntimeError(f"{ranks}: the plain pass's outputs are not finite")
        return seconds, values

    def _multiply_out(self, index: int, rank: Rank | None) -> None:
        if (index, rank) not in self._multiplied_out:
            assert rank is not None  # dense weights are there from the start
            layer = self._layers[index]
            weight = multiplied_out(self._schemes[index], layer, self._factors[layer.name], rank)
            self._multiplied_out[index, rank] = weight.contiguous()


def _contiguous(batch: Batch) -> torch.Tensor:
    assert isinstance(batch.inputs, torch.Tensor)
    return batch.inputs.contiguous()
