"""What a scheme is: stages (shapes), factors (one decomposition) and weights (its truncations)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from search_spaces.error_curves import ErrorCurve
from search_spaces.layers import Layer, Stage
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank

__all__ = ["Factors", "Scheme"]


@dataclass(frozen=True)
class Factors:
    """One full decomposition of a layer, ordered so that truncating is slicing.

    Attributes:
        parts: the scheme's tensors by name.
        last_stages: by rank, the weight of the cascade's last stage where it is not the truncated one but was fitted
            to the layer's outputs (`refit.py`); shaped as that stage's weight.
        bias_corrections: by rank, `(out,)`, what the last stage's bias gains (`bias_correction.py`): the stage has a
            bias then, also where the layer has none.
    """

    parts: Mapping[str, torch.Tensor]
    last_stages: Mapping[Rank, torch.Tensor] = field(default_factory=dict)
    bias_corrections: Mapping[Rank, torch.Tensor] = field(default_factory=dict)

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The tensors by name, for whoever stores them; `from_tensors` undoes it."""
        by_rank = {_LAST: self.last_stages, _CORRECTION: self.bias_corrections}
        named = {f"{kind}:{_rank_text(rank)}": one for kind, those in by_rank.items() for rank, one in those.items()}
        return {**self.parts, **named}

    def to(self, device: torch.device | str) -> Factors:
        """The same factors on a device; tensors that are there already are not copied."""
        return Factors.from_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Factors:
        """The factors that `tensors()` named."""
        parts: dict[str, torch.Tensor] = {}
        by_rank: dict[str, dict[Rank, torch.Tensor]] = {_LAST: {}, _CORRECTION: {}}
        for name, tensor in tensors.items():
            kind, _, rank = name.partition(":")
            if kind in by_rank:
                by_rank[kind][_rank_from(rank)] = tensor
            else:
                parts[name] = tensor
        return cls(parts, by_rank[_LAST], by_rank[_CORRECTION])

    @classmethod
    def of_matrix(cls, encoder: torch.Tensor, decoder: torch.Tensor, singular_values: torch.Tensor) -> Factors:
        """Factors of one m x n matrix M = decoder.T @ encoder, q = min(m, n).

        Args:
            encoder: `(q, n)`, rows sqrt(s_i) v_i^T; the first r rows are rank r's first stage.
            decoder: `(q, m)`, rows sqrt(s_i) u_i^T.
            singular_values: `(q,)`, descending.
        """
        return cls({"encoder": encoder, "decoder": decoder, "singular_values": singular_values})

    @property
    def encoder(self) -> torch.Tensor:
        """`(q, n)` where one matrix was decomposed."""
        return self.parts["encoder"]

    @property
    def decoder(self) -> torch.Tensor:
        """`(q, m)` where one matrix was decomposed."""
        return self.parts["decoder"]

    @property
    def singular_values(self) -> torch.Tensor:
        """`(q,)`, descending, where one matrix was decomposed."""
        return self.parts["singular_values"]


_LAST, _CORRECTION = "last_stage", "bias_correction"


def _rank_text(rank: Rank) -> str:
    return str(rank) if isinstance(rank, int) else "x".join(map(str, rank))


def _rank_from(text: str) -> Rank:
    numbers = tuple(map(int, text.split("x")))
    return numbers if len(numbers) > 1 else numbers[0]


class Scheme(Protocol):
    """A way to stand a cascade of thin stages in for one layer."""

    name: str

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """(m, n) of the matrix that is decomposed."""

    def ranks(self, layer: Layer) -> Sequence[Rank]:
        """Every rank that the layer may take: `range(1, full + 1)` where ranks are numbers."""

    def stages(self, layer: Layer, rank: Rank) -> tuple[Stage, ...]:
        """The cascade's stages at `rank`; the last one carries the layer's bias."""

    def factorise(
        self, layer: Layer, weight: torch.Tensor, moment: Moment | None = None, ranks: Sequence[Rank] | None = None
    ) -> Factors:
        """Decomposes the weight once, for all ranks.

        Args:
            weight: the layer's weight, `layer.dense.weight_shape`, any floating dtype.
            moment: of the layer's inputs: truncations then minimise the output's error instead of the weight's.
            ranks: those that will be asked for, where a scheme's factors are not the same for all; None is any.

        Returns:
            Factors in the weight's dtype; the decomposition itself runs in float64, because it is done once
            and float32 singular vectors of nearly equal values differ between machines.

        Raises:
            ValueError: the weight is not finite.
        """

    def weights(self, layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, ...]:
        """The stages' weights at `rank`, truncated: views of the factors, nothing is copied."""

    def dense_weight(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """The truncated weight multiplied out, `layer.dense.weight_shape`."""

    def encoder_matrix(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """All stages but the last as one matrix E, `(p, in kh kw)`.

        An input patch, laid out as `weight.flatten(1)` lays out its columns, times E gives the `p` numbers that the
        last stage's weight, flattened to `(out, p)`, turns into the layer's outputs: last.flatten(1) @ E is the
        weight that the cascade computes.
        """

    def error_curve(self, layer: Layer, weight: torch.Tensor, measure: str, moment: Moment | None = None) -> ErrorCurve:
        """The relative error of every rank, by one of the measures of `error_curves.py`.

        Raises:
            ValueError: the weight is not finite.
        """
