"""`ca`: compression-aware training (Alvarez & Salzmann, NIPS 2017), a baseline.

The sum of all singular values of every layer (its nuclear norm) is trained down beside the loss, by proximal steps:
after every epoch each singular value is lowered by a threshold, at most to 0. The ranks then keep the same share of
energy in every layer. The paper's weights of the penalty are per data set, and its share of energy is fixed; here

- the threshold is a share of the layer's largest singular value in the dense network, so that one number serves
  all layers, and follows the learning rate, as a proximal step's does;
- the share of energy is the largest one that meets the budget, and what it leaves of the budget is spent.

"CA" in the BSR thesis is this method (its reference [1]).
"""

from __future__ import annotations

import bisect
import copy
import time
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from search_spaces.fitting import fit_to_budget
from search_spaces.rank_space import RankVector
from workers.training.contract import Compressed, Metrics, Setup, State, TrainingSettings, check_setup
from workers.training.fine_tuning import FineTuningSettings
from workers.training.foldings import folded, require_foldable, unfolded
from workers.training.layer_losses import energy_losses, weights_by_layer
from workers.training.selection import SelectThenFineTune, report
from workers.training.sgd import SGDSettings, SGDTraining
from workers.training.truncation import Norm, architecture, truncate

__all__ = ["CASettings", "NuclearNormTraining", "energy_rungs", "start_ca"]


class NuclearNormSettings(SGDSettings):
    """How the dense network is trained towards low rank; see `SGDSettings`.

    Attributes:
        epochs: of it.
        shrinkage: what an epoch at the highest learning rate takes from every singular value, as a share of the layer's
            largest one in the dense network.
    """

    epochs: Annotated[int, Field(ge=0)] = 8
    shrinkage: Annotated[float, Field(ge=0, lt=1)] = 0.05


class CASettings(TrainingSettings):
    """CA.

    Attributes:
        training: with the nuclear norm.
        fine_tuning: of the truncated network.
        norm: what the truncation between them minimises.
    """

    training: NuclearNormSettings = NuclearNormSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()
    norm: Norm = "weight"


class NuclearNormTraining:
    """The first phase."""

    def __init__(self, settings: CASettings, setup: Setup) -> None:
        self._settings, self._setup, self._norm = settings.training, setup, settings.norm
        network = copy.deepcopy(setup.network)
        teacher = copy.deepcopy(setup.network).requires_grad_(False) if self._settings.distillation else None
        self._training = SGDTraining(
            network,
            setup.train,
            self._settings,
            seed=setup.seed,
            device=setup.device,
            method="ca",
            teacher=teacher,
        )
        self._weights = weights_by_layer(network, setup)
        self._largest = {
            layer.name: float(torch.linalg.matrix_norm(folded(scheme, layer, self._weights[layer.name].detach()), 2))
            for layer, scheme in zip(setup.layers, setup.schemes, strict=True)
        }

    @property
    def epochs(self) -> int:
        """With the nuclear norm."""
        return self._settings.epochs

    def step(self) -> Metrics:
        """One epoch, then the proximal step; says the mean share of singular values that are 0."""
        started = time.perf_counter()
        result = self._training.epoch()
        zero = self._shrink(self._settings.shrinkage * result.learning_rate / self._settings.learning_rate)
        return report(
            self._training.network,
            result,
            self._setup,
            epoch=self._training.epochs,
            phase="ca",
            started=started,
            zero_share=zero,
        )

    def state(self) -> State:
        """The training's."""
        return self._training.state()

    def restore(self, state: State) -> None:
        """Goes on where `state()` was taken."""
        self._training.restore(state)

    def compress(self) -> Compressed:
        """Truncated at the ranks of the highest share of energy that the budget allows."""
        return truncate(self._training.network, self._setup, self._ranks(), self._norm)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """Cascades in the layers' places."""
        return architecture(self._setup, compressed.ranks)

    @torch.no_grad()
    def _shrink(self, share: float) -> float:
        """Lowers all singular values; the mean share of those that are 0 then."""
        zero = 0.0
        for layer, scheme in zip(self._setup.layers, self._setup.schemes, strict=True):
            weight = self._weights[layer.name]
            left, values, right = torch.linalg.svd(folded(scheme, layer, weight.detach()), full_matrices=False)
            values = (values - share * self._largest[layer.name]).clamp(min=0)
            weight.copy_(unfolded(scheme, layer, (left * values) @ right))
            zero += float((values == 0).double().mean()) / len(self._setup.layers)
        return zero

    def _ranks(self) -> RankVector:
        setup = self._setup
        losses = energy_losses(setup, self._weights)
        shares = sorted({loss for layer in losses for loss in layer})

        def over(share: float) -> bool:
            rungs = energy_rungs(losses, share)
            return setup.budget.gap(setup.space, setup.space.at(rungs)) < 0

        # Ranks fall as the share that may be lost grows: the smallest one within the budget.
        first = bisect.bisect_left(shares, True, key=lambda share: not over(share))
        start = energy_rungs(losses, shares[min(first, len(shares) - 1)])
        return fit_to_budget(setup.space, setup.budget, losses, start)


def energy_rungs(losses: list[list[float]], share: float) -> list[int]:
    """The lowest rung of every layer that loses no more than a share of its energy."""
    return [next(rung for rung, loss in enumerate(layer, start=1) if loss <= share) for layer in losses]


def start_ca(settings: CASettings, setup: Setup) -> SelectThenFineTune:
    """The trainable.

    Raises:
        ConfigError: a scheme without one matrix a layer, or samples that do not fit.
        InfeasibleBudgetError: a budget that no rank vector meets.
    """
    check_setup(setup, "ca")
    for scheme in setup.schemes:
        require_foldable(scheme, "ca")
    return SelectThenFineTune("ca", NuclearNormTraining(settings, setup), settings.fine_tuning, setup)
