"""Layers that are all their rank candidates at once, for the price of one (HALOC's over-parameterised layers).

Candidates are truncations of one decomposition: a factor's row i takes part in every candidate of a higher rank. So
the mixture sum_j p_j f_j(x) of the candidates' outputs, for two factors as for Tucker-2, is a single layer whose
factors are weighed by c_i = sum of p_j over r_j > i: the probability that row i is there. In Tucker-2's core, entry
(b, a) is there if both rows are, that is max(a, b) is: its weight is c_max(a,b), not c_a c_b. The candidate "dense" is
the full rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from search_spaces.layers import Layer
from search_spaces.rank_space import Rank, number
from search_spaces.schemes.contract import Factors

__all__ = ["NestedLayer"]


class NestedLayer(nn.Module):
    """The factors of one layer, trained, and the layer's weight under probabilities of its candidates.

    Args:
        factors: of `tucker2`: inner, core and outer, or encoder and decoder where that is `channel_svd`.
        candidates: ranks from small to large; None, dense, comes last where it is offered.
    """

    def __init__(self, layer: Layer, factors: Factors, candidates: Sequence[Rank | None]) -> None:
        super().__init__()
        self._shape = layer.dense.weight_shape
        self.flat = "encoder" in factors.parts
        names = ("encoder", "decoder") if self.flat else ("inner", "core", "outer")
        self.factors = nn.ParameterDict({name: nn.Parameter(factors.parts[name].clone()) for name in names})
        full = len(self.factors["encoder"]) if self.flat else max(self.factors["core"].shape[:2])
        ranks = [full if rank is None else number(rank) for rank in candidates]
        holds = torch.arange(full) < torch.tensor(ranks).unsqueeze(1)
        self.register_buffer("holds", holds.float())
        self.holds: torch.Tensor

    def weight(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The mixture's weight, of the dense layer's shape.

        Args:
            probabilities: `(candidates,)`, sum 1.
        """
        there = probabilities @ self.holds
        if self.flat:
            flat: torch.Tensor = (self.factors["decoder"].T * there) @ self.factors["encoder"]
            return flat.view(self._shape)
        core = self.factors["core"]
        outer, inner = (torch.arange(size, device=core.device) for size in core.shape[:2])
        core = core * there[torch.maximum(outer.unsqueeze(1), inner)][:, :, None, None]
        # Over the output mode first: what lies between is as large as the layer's weight at most.
        half = torch.tensordot(self.factors["outer"].T, core, dims=1)
        weight: torch.Tensor = torch.einsum("oahw,ac->ochw", half, self.factors["inner"])
        return weight

    def trained(self) -> Factors:
        """The factors as they are: their leading blocks are the candidates."""
        parts = {name: factor.detach() for name, factor in self.factors.items()}
        if self.flat:
            parts["singular_values"] = parts["encoder"].norm(dim=1) * parts["decoder"].norm(dim=1)
        return Factors(parts)
