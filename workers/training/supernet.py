"""HALOC's over-parameterised network: every layer is the mixture of its rank candidates."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.layers import Layer
from search_spaces.rank_space import Rank
from search_spaces.schemes.contract import Factors
from workers.batch import Inputs, run_model
from workers.factoriser import Factorising, factorise
from workers.training.contract import Setup
from workers.training.filter_removal import run_with
from workers.training.nested_ranks import NestedLayer

__all__ = ["Relaxation", "Supernet"]

Relaxation = Literal["gumbel", "softmax", "sampled"]
"""How one forward pass weighs a layer's candidates: drawn soft weights, the probabilities themselves, or one candidate
drawn, with the soft draw's gradient."""


class Supernet(nn.Module):
    """A network of nested layers.

    Attributes:
        nested: per layer of the set-up.
        logits: per layer, of its candidates' probabilities; 1 / n at the start.
        temperature: of draws.
        features: the approach loss of the last forward pass in training, where it is asked for.
        drawn: the candidates' weights in the last forward pass, by layer.
    """

    def __init__(self, setup: Setup, ladders: Sequence[Sequence[Rank | None]], relaxation: Relaxation) -> None:
        super().__init__()
        self.model = copy.deepcopy(setup.network)
        self._layers, self._relaxation = setup.layers, relaxation
        nested = []
        for layer, scheme, ladder in zip(setup.layers, setup.schemes, ladders, strict=True):
            weight = self.model.get_parameter(f"{layer.name}.weight").detach().cpu()
            factors = factorise(layer, scheme.name, weight, [r for r in ladder if r is not None], Factorising(), None)
            nested.append(NestedLayer(layer, factors, ladder))
        self.nested = nn.ModuleList(nested)
        self.logits = nn.ParameterList(nn.Parameter(torch.full((len(one),), 1 / len(one))) for one in ladders)
        self.temperature = 1.0
        self.features: torch.Tensor | None = None
        self.drawn: list[torch.Tensor] = []
        self._teacher: tuple[nn.Module, ...] = ()  # a tuple: it is no part of this module

    def compare_with(self, teacher: nn.Module | None) -> None:
        """Has forward passes in training compare every layer's outputs with this network's; None ends that."""
        self._teacher = () if teacher is None else (teacher,)

    def forward(self, inputs: Inputs) -> object:
        """The outputs of the mixture: drawn in training, of the probabilities themselves else."""
        self.drawn = [self._draw(logits) for logits in self.logits]
        tensors = self.weights(self.drawn)
        self.features = None
        if not (self.training and self._teacher):
            return run_with(self.model, tensors, inputs)
        with _outputs(self._teacher[0], self._layers) as expected, torch.no_grad():
            run_model(self._teacher[0], inputs)
        with _outputs(self.model, self._layers) as found:
            outputs = run_with(self.model, tensors, inputs)
        self.features = _approach(found, expected)
        return outputs

    def weights(self, probabilities: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The layers' weights under these probabilities, in full precision, by name."""
        with torch.autocast(probabilities[0].device.type, enabled=False):
            return {
                f"{layer.name}.weight": nested.weight(one)
                for layer, nested, one in zip(self._layers, self._nested(), probabilities, strict=True)
            }

    def probabilities(self) -> list[torch.Tensor]:
        """Per layer, `(candidates,)`."""
        return [logits.detach().softmax(0) for logits in self.logits]

    def make_plain(self) -> nn.Module:
        """The network itself with every layer at its full rank; for a supernet that is not needed any more."""
        full = []
        for nested in self._nested():
            chances = nested.holds.new_zeros(len(nested.holds))
            chances[-1] = 1
            full.append(chances)
        with torch.no_grad():
            for name, weight in self.weights(full).items():
                self.model.get_parameter(name).copy_(weight)
        plain: nn.Module = self.model.to(memory_format=torch.contiguous_format)
        return plain.requires_grad_(True)

    def trained_factors(self) -> dict[str, Factors]:
        """Per layer, its factors."""
        return {layer.name: nested.trained() for layer, nested in zip(self._layers, self._nested(), strict=True)}

    def trained_weights(self) -> list[nn.Parameter]:
        """All parameters but the logits and the weights that the factors stand for."""
        replaced = {f"{layer.name}.weight" for layer in self._layers}
        others = [one for name, one in self.model.named_parameters() if name not in replaced]
        return [*self.nested.parameters(), *others]

    def _nested(self) -> Iterator[NestedLayer]:
        yield from self.nested  # type: ignore[misc]

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.training or self._relaxation == "softmax":
            return logits.softmax(0)
        return F.gumbel_softmax(logits, self.temperature, hard=self._relaxation == "sampled", dim=0)


@contextmanager
def _outputs(network: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """What the layers put out in forward passes meanwhile, by name, one entry per call."""
    found: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    handles = [
        network.get_submodule(name).register_forward_hook(lambda _module, _inputs, out, to=outputs: to.append(out))
        for name, outputs in found.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _approach(found: dict[str, list[torch.Tensor]], expected: dict[str, list[torch.Tensor]]) -> torch.Tensor:
    """Mean squared error of the layers' outputs relative to their mean square, averaged over layers and calls."""
    errors = [
        F.mse_loss(ours.float(), theirs.float()) / theirs.float().square().mean().clamp_min(1e-12)
        for name in found
        for ours, theirs in zip(found[name], expected[name], strict=True)
    ]
    return torch.stack(errors).mean()
