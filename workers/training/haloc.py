"""`haloc`: ranks chosen by gradient among a layer's Tucker-2 candidates, for the hardware at hand (arXiv 2301.09422).

Weights and the candidates' probabilities are updated in turn, each on its own part of the training samples:

    L_weight = CE + lambda_f L_approach,    L_approach = mean over layers of MSE(F, F_dense) / mean square of F_dense
    L_probability = CE (C / C_d)^beta where C > C_d, else CE;    C = sum over layers, candidates of p_j cost(r_j)

Then every layer takes its most probable candidate, what misses the budget is repaired, and the network is fine-tuned.
The paper has L_weight, the ranks' step and the fact that L_probability holds the predicted hardware cost. All else is
open, and taken from the same authors' ComCAT code (arXiv 2305.17235) where that has it:

- From there: Gumbel-softmax, its temperature from 5 down to 0.1, beta = 1.5, AdamW at 0.01 with weight decay 5e-4 for
  the probabilities, and turns of an epoch. Not from there: its probabilities are learned on test data.
- Candidates share factors (`nested_ranks.py`): one forward pass, and one network's memory, for all of them.
- A 1 x 1 convolution and a linear layer have two factors: a third would be wasted. The dense layer is a candidate, too.
- The step of candidates is halved for a layer until it has `least_candidates`: 16, the authors' 32 all the more, leaves
  a layer of 16 channels none.
- Feature maps are compared relative to their size, so that lambda_f means the same for every network, in all layers.
- Repair keeps the order of what was learned: candidates are added by the probability that their rank is reached, as far
  as the budget goes. What is then left over may go to ranks off the step (`strict_step` forbids it).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from search_spaces.assembly import assemble
from search_spaces.errors import ConfigError
from workers.training.contract import Compressed, Metrics, Setup, State, check_setup
from workers.training.rank_candidates import RankCandidates
from workers.training.selection import SelectThenFineTune, report
from workers.training.selection_settings import SelectionSettings
from workers.training.sgd import SGDTraining
from workers.training.supernet import Relaxation, Supernet
from workers.training.thinning import take_statistics
from workers.training.truncation import architecture

__all__ = ["Haloc", "HalocSettings", "start_haloc"]


class HalocSettings(SelectionSettings):
    """How ranks are chosen; the rest is fine-tuning's.

    Attributes:
        selection_epochs: turns of weights and probabilities.
        selection_learning_rate: of the weights meanwhile, falling along half a cosine.
        probability_share: of the training samples, for the probabilities; the weights have the rest.
        probability_learning_rate, probability_weight_decay: AdamW's.
        relaxation: how a step weighs the candidates (`supernet.Relaxation`).
        first_temperature, last_temperature: of the draws; falls by one factor every epoch.
        cost_power: beta.
        feature_weight: lambda_f; 0 leaves the dense network out.
        step: candidates are its multiples; a measured space's ranks are taken as they are.
        least_candidates: below which the step is halved for a layer, the dense candidate not counted.
        strict_step: whether the budget must be met without ranks off the step.
    """

    probability_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    probability_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    probability_weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    relaxation: Relaxation = "gumbel"
    first_temperature: Annotated[float, Field(gt=0)] = 5.0
    last_temperature: Annotated[float, Field(gt=0)] = 0.1
    cost_power: Annotated[float, Field(gt=0)] = 1.5
    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    step: Annotated[int, Field(ge=1)] = 16
    least_candidates: Annotated[int, Field(ge=1)] = 2
    strict_step: bool = False


class Haloc:
    """The selection: turns of weights and probabilities, then the most probable ranks within the budget."""

    def __init__(self, setup: Setup, settings: HalocSettings) -> None:
        self._setup, self._settings = setup, settings
        self.candidates = RankCandidates(setup, settings.step, settings.least_candidates, settings.strict_step)
        self.network = Supernet(setup, self.candidates.ladders, settings.relaxation)
        self._teacher = copy.deepcopy(setup.network).to(setup.device).eval().requires_grad_(False)
        self._costs = [
            [one.to(setup.device) for one in self.candidates.shares(cost)] for cost, _ in setup.budget.targets
        ]
        share = settings.probability_share
        weights, probabilities = setup.train.split([1 - share, share], setup.seed)
        common: dict[str, Any] = {"device": setup.device, "method": "haloc"}
        self._weights = SGDTraining(
            self.network,
            weights,
            settings.selecting(),
            seed=setup.seed,
            objective=self._weight_objective,
            optimizer=self._weight_optimizer,
            **common,
        )
        self._probabilities = SGDTraining(
            self.network,
            probabilities,
            settings.selecting(),
            seed=setup.seed + 1,
            rate=lambda _: settings.probability_learning_rate,
            objective=self._probability_objective,
            optimizer=self._probability_optimizer,
            **common,
        )

    @property
    def epochs(self) -> int:
        """Turns."""
        return self._settings.selection_epochs

    def step(self) -> Metrics:
        """One turn: an epoch of the weights, an epoch of the probabilities; the accuracy is the mixture's.

        Raises:
            TrialDivergedError: a loss is NaN or infinite.
        """
        started = time.perf_counter()
        settings, done = self._settings, self._weights.epochs / max(1, self.epochs - 1)
        fall = settings.last_temperature / settings.first_temperature
        self.network.temperature = settings.first_temperature * fall ** min(1.0, done)
        self._train_weights(True)
        self.network.compare_with(self._teacher if settings.feature_weight else None)
        result = self._weights.epoch()
        self.network.compare_with(None)
        self._train_weights(False)
        self._probabilities.epoch()
        chances = self.network.probabilities()
        soft = {
            f"soft_{cost}": 1 - float(self._share(costs, chances))
            for (cost, _), costs in zip(self._setup.budget.targets, self._costs, strict=True)
        }
        certainty = sum(float(one.max()) for one in chances) / len(chances)
        epoch = self._weights.epochs
        return report(
            self.network, result, self._setup, epoch=epoch, phase="haloc", started=started, certainty=certainty, **soft
        )

    def state(self) -> State:
        """A copy of both trainings' states; they share the network."""
        probabilities = self._probabilities.state()
        del probabilities["network"]
        return {"weights": self._weights.state(), "probabilities": probabilities}

    def restore(self, state: State) -> None:
        """Goes on where `state()` was taken."""
        self._weights.restore(state["weights"])
        self._probabilities.restore({**state["probabilities"], "network": state["weights"]["network"]})

    def compress(self) -> Compressed:
        """Leading blocks of the trained factors at the chosen ranks."""
        ranks = self.candidates.choose([one.cpu() for one in self.network.probabilities()])
        network = self.network.cpu()
        plain = network.make_plain()
        small = assemble(plain, self._setup.layers, self._setup.schemes, ranks, network.trained_factors())
        take_statistics(small, self._setup)
        return Compressed(small, ranks)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """Cascades in the layers' places."""
        return architecture(self._setup, compressed.ranks)

    @staticmethod
    def _share(costs: Sequence[torch.Tensor], chances: Sequence[torch.Tensor]) -> torch.Tensor:
        """C: the expected share of the dense network's cost."""
        return torch.stack([(cost * one).sum() for cost, one in zip(costs, chances, strict=True)]).sum()

    def _weight_objective(self, loss: torch.Tensor) -> torch.Tensor:
        features = self.network.features
        return loss if features is None else loss + self._settings.feature_weight * features

    def _probability_objective(self, loss: torch.Tensor) -> torch.Tensor:
        allowed = [1 - target for _, target in self._setup.budget.targets]
        shares = [self._share(costs, self.network.drawn) for costs in self._costs]
        over = torch.stack([share / most for share, most in zip(shares, allowed, strict=True)]).max()
        return loss * over.clamp_min(1) ** self._settings.cost_power

    def _train_weights(self, weights: bool) -> None:
        """Whose turn it is: nothing else gets gradients."""
        self.network.requires_grad_(False)
        for parameter in self.network.trained_weights() if weights else self.network.logits:
            parameter.requires_grad_(True)

    def _weight_optimizer(self) -> torch.optim.Optimizer:
        weights, settings = self.network.trained_weights(), self._settings
        groups: list[dict[str, Any]] = [
            {"params": [one for one in weights if one.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [one for one in weights if one.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=settings.selection_learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )

    def _probability_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.logits, weight_decay=self._settings.probability_weight_decay)


def start_haloc(settings: HalocSettings, setup: Setup) -> SelectThenFineTune:
    """The trainable.

    Raises:
        ConfigError: another scheme than `tucker2`, or samples that do not fit the network.
        InfeasibleBudgetError: the candidates cannot meet the budget.
    """
    check_setup(setup, "haloc")
    other = next((one.name for one in setup.schemes if one.name != "tucker2"), None)
    if other is not None:
        raise ConfigError("sweep.scheme", f"haloc factorises by tucker2, got {other}")
    return SelectThenFineTune("haloc", Haloc(setup, settings), settings, setup)
