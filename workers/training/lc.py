"""`lc`: learning-compression with rank selection (Idelbayev & Carreira-Perpinan, CVPR 2020), a baseline.

The network is trained towards its own truncation, ever more strictly: min L(W) subject to W_l = D_l of rank r_l, as an
augmented Lagrangian with multipliers Lam_l and a growing mu. In turn,

    L step: SGD on L(W) + sum_l mu/2 |W_l - D_l - Lam_l/mu|^2,
    C step: D_l = the truncation of X_l = W_l - Lam_l/mu at rank r_l, then Lam_l <- Lam_l - mu (W_l - D_l).

LC chooses ranks in every C step by minimising alpha cost(r) + mu/2 sum_l (what X_l loses) / |X_l|^2; alpha sets the
cost, which is only known at the end. Here alpha is chosen anew in every C step so that the budget is met and used up:
the same rule, by the same penalty on cost, with a result that fits. A layer whose rank would not shrink it stays dense
and has no penalty. The sources' schedule is 50 steps of 15 epochs, mu = 1e-3 x 1.25^step; the default goes as far in 8
steps of one epoch.
"""

from __future__ import annotations

import copy
import time
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from search_spaces.fitting import fit_to_budget
from search_spaces.rank_space import RankVector, rank_vector_from
from workers.training.contract import Compressed, Metrics, Setup, State, TrainingSettings, check_setup
from workers.training.fine_tuning import FineTuningSettings
from workers.training.layer_losses import energy_losses, weights_by_layer
from workers.training.selection import SelectThenFineTune, report
from workers.training.sgd import SGDSettings, SGDTraining
from workers.training.truncation import architecture, truncate

__all__ = ["LCSettings", "LearningCompression", "start_lc"]


class LearningSettings(SGDSettings):
    """LC's two steps; `epochs` are those of one L step, see `SGDSettings` for the rest.

    The learning rate begins anew in every L step, falls by `decay` an epoch, and never exceeds 1 / mu, beyond which the
    penalty alone would diverge.

    Attributes:
        steps: L steps, each followed by a C step; another C step comes first.
        mu_start, mu_end: the penalty in the first and the last L step, growing by a constant factor between.
        decay: of the learning rate.
    """

    epochs: Annotated[int, Field(ge=1)] = 1
    steps: Annotated[int, Field(ge=0)] = 8
    mu_start: Annotated[float, Field(gt=0)] = 1e-3
    mu_end: Annotated[float, Field(gt=0)] = 56.0
    decay: Annotated[float, Field(gt=0, le=1)] = 0.99

    def mu(self, step: int) -> float:
        """Mu in an L step, counted from 0."""
        share = step / max(1, self.steps - 1)
        return float(self.mu_start * (self.mu_end / self.mu_start) ** share)


class LCSettings(TrainingSettings):
    """LC.

    Attributes:
        training: its L and C steps.
        fine_tuning: of the truncated network.
    """

    training: LearningSettings = LearningSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()


class LearningCompression:
    """The first phase.

    Attributes:
        ranks: of the last C step.
    """

    def __init__(self, settings: LCSettings, setup: Setup) -> None:
        self._settings, self._setup = settings.training, setup
        network = copy.deepcopy(setup.network)
        teacher = copy.deepcopy(setup.network).requires_grad_(False) if self._settings.distillation else None
        self._training = SGDTraining(
            network,
            setup.train,
            self._settings,
            seed=setup.seed,
            device=setup.device,
            method="lc",
            teacher=teacher,
            rate=self._rate,
            after_backward=self._add_gradients,
        )
        self._weights = weights_by_layer(network, setup)
        self._multipliers = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._targets: dict[str, torch.Tensor] = {}
        self.ranks: RankVector = setup.space.dense
        self._compress_weights(self._weights)

    @property
    def epochs(self) -> int:
        """Of all L steps."""
        return self._settings.steps * self._settings.epochs

    def step(self) -> Metrics:
        """One epoch of an L step; the C step after its last one. Says mu and how far W is from D."""
        started = time.perf_counter()
        mu = self._mu(self._training.epochs)
        result = self._training.epoch()
        if self._training.epochs % self._settings.epochs == 0:
            self._c_step(mu)
        distance = self._distance()
        return report(
            self._training.network,
            result,
            self._setup,
            epoch=self._training.epochs,
            phase="lc",
            started=started,
            mu=mu,
            distance=distance,
        )

    def state(self) -> State:
        """The training's, and what the C steps have left."""
        return {
            "training": self._training.state(),
            "multipliers": {name: tensor.clone() for name, tensor in self._multipliers.items()},
            "targets": {name: tensor.clone() for name, tensor in self._targets.items()},
            "ranks": [list(rank) if isinstance(rank, tuple) else rank for rank in self.ranks],
        }

    def restore(self, state: State) -> None:
        """Goes on where `state()` was taken."""
        self._training.restore(state["training"])
        self._multipliers = {name: state["multipliers"][name].to(one) for name, one in self._weights.items()}
        self._targets = {name: tensor.to(self._weights[name]) for name, tensor in state["targets"].items()}
        self.ranks = rank_vector_from(state["ranks"])

    def compress(self) -> Compressed:
        """The last D in the places of W."""
        network = copy.deepcopy(self._training.network)
        with torch.no_grad():
            for name, target in self._targets.items():
                network.get_parameter(f"{name}.weight").copy_(target)
        return truncate(network, self._setup, self.ranks)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """Cascades in the layers' places."""
        return architecture(self._setup, compressed.ranks)

    def _mu(self, epoch: int) -> float:
        return self._settings.mu(epoch // self._settings.epochs)

    def _rate(self, epochs: float) -> float:
        step, within = divmod(epochs, self._settings.epochs)
        decayed = self._settings.learning_rate * float(self._settings.decay**within)
        return min(decayed, 1.0 / self._settings.mu(int(step)))

    def _add_gradients(self, _step: int) -> None:
        """The penalty's: mu (W - D) - Lam."""
        mu = self._mu(self._training.epochs)
        with torch.no_grad():
            for name, target in self._targets.items():
                weight = self._weights[name]
                assert weight.grad is not None
                weight.grad.add_(weight - target, alpha=mu).sub_(self._multipliers[name])

    @torch.no_grad()
    def _c_step(self, mu: float) -> None:
        self._compress_weights({name: one - self._multipliers[name] / mu for name, one in self._weights.items()})
        for name, weight in self._weights.items():
            if name in self._targets:
                self._multipliers[name] -= mu * (weight - self._targets[name])
            else:
                self._multipliers[name].zero_()

    @torch.no_grad()
    def _compress_weights(self, weights: dict[str, Any]) -> None:
        """Chooses ranks for these weights and sets D."""
        setup = self._setup
        self.ranks = fit_to_budget(setup.space, setup.budget, energy_losses(setup, weights))
        self._targets = {}
        for layer, scheme, rank in zip(setup.layers, setup.schemes, self.ranks, strict=True):
            if rank is None:
                continue
            weight = weights[layer.name].detach()
            factors = scheme.factorise(layer, weight.cpu().contiguous(), None, (rank,))
            self._targets[layer.name] = torch.empty_like(weight).copy_(scheme.dense_weight(layer, factors, rank))

    @torch.no_grad()
    def _distance(self) -> float:
        """Sum of |W - D|^2 over that of |W|^2."""
        gap = norm = 0.0
        for name, target in self._targets.items():
            gap += float((self._weights[name] - target).square().sum())
            norm += float(self._weights[name].square().sum())
        return gap / max(norm, 1e-30)


def start_lc(settings: LCSettings, setup: Setup) -> SelectThenFineTune:
    """The trainable.

    Raises:
        ConfigError: samples that do not fit the network.
        InfeasibleBudgetError: a budget that no rank vector meets.
    """
    check_setup(setup, "lc")
    return SelectThenFineTune("lc", LearningCompression(settings, setup), settings.fine_tuning, setup)
