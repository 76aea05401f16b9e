"""Bias correction: a cascade's last stage gains as bias what factorising took from the layer's mean output.

With M the layer's weight and D E the cascade's, both as matrices over the input patch p, that is (M - D E) E[p]. Of all
biases it leaves the least mean squared error, whatever D and E are. From M. Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction" (2019), section 4.2, on quantised weights, with E[p] from batch norms;
here E[p] is the mean over calibration patches. Before a batch norm whose statistics are taken again it changes nothing.

A layer without a bias gets one in its last stage. The running mean of a batch norm could take it where one follows and
nobody reads in between, but only a traced forward tells, and a linear layer has none behind it. A bias is the same in
every network and every form of it, and whatever folds batch norms (the scorers, runtimes of exported networks) adds one
anyway. Costs count no biases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from search_spaces.layers import Layer
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.truncation import stage_weights

__all__ = ["correct_biases"]


def correct_biases(
    scheme: Scheme, layer: Layer, factors: Factors, ranks: Iterable[Rank], weight: torch.Tensor, moment: Moment
) -> Factors:
    """Has the layer's mean output over the calibration inputs kept at every rank asked for.

    Args:
        factors: of this weight by this scheme, with the last stages that will be used.
        weight: the layer's, `layer.dense.weight_shape`.
        moment: of the layer's inputs.

    Returns:
        Factors with the same parts and last stages, and `bias_corrections` in the weight's dtype, computed in float64:
        they are small differences of large sums.

    Raises:
        ValueError: the moment is not finite.
    """
    moment.check_finite()
    mean = moment.mean.double()
    kept = weight.detach().flatten(1).double() @ mean
    corrections = {}
    for rank in ranks:
        last = stage_weights(scheme, layer, factors, rank)[-1].flatten(1).double()
        reduced = scheme.encoder_matrix(layer, factors, rank).double() @ mean
        corrections[rank] = (kept - last @ reduced).to(weight.dtype)
    return replace(factors, bias_corrections={**factors.bias_corrections, **corrections})
