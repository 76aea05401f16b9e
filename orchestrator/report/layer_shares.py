"""How much of a dense layer's parameters a factorised one has, from `space.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import ConfigError
from search_spaces.layers import Layer, Stage
from search_spaces.rank_space import Rank
from search_spaces.schemes.registry import schemes

__all__ = ["parameter_share"]


def parameter_share(described: Mapping[str, Any], rank: Rank) -> float | None:
    """Parameters of a layer's cascade at `rank` over those of the dense layer.

    Args:
        described: an entry of `space.json`'s `layers`.

    Returns:
        None where the scheme is not installed here, or does not know such a rank.
    """
    try:
        outputs, inputs, *kernel = (int(side) for side in described["weight_shape"])
        height, width = kernel or (1, 1)
        dense = Stage(inputs, outputs, (height, width), linear=not kernel)
        layer = Layer(str(described["name"]), dense, False, ())
        stages = schemes().get(str(described["scheme"]), "scheme").stages(layer, rank)
    except (ConfigError, KeyError, TypeError, ValueError):
        return None
    return layer.parameters(stages) / dense.parameters if dense.parameters else None
