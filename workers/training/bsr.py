"""`bsr`: training with the modified stable rank at a search's ranks, then truncation and fine-tuning.

Eo et al., arXiv 2111.15179; Eo's thesis, chapter 3. The ranks stay what the search has found (choosing them again in
training hurts), lambda grows by a factor every so many epochs, and the penalty's subspaces are found again every 64
steps.
"""

from __future__ import annotations

import copy
import time
from typing import Annotated

from pydantic import Field
from torch import nn

from search_spaces.rank_space import RankVector
from workers.training.contract import Compressed, Metrics, Setup, State, TrainingSettings, check_setup
from workers.training.fine_tuning import FineTuningSettings
from workers.training.foldings import require_foldable
from workers.training.layer_losses import fitted_ranks
from workers.training.samples import generator
from workers.training.selection import SelectThenFineTune, report
from workers.training.sgd import SGDSettings, SGDTraining
from workers.training.stable_rank import PenalisedLayer, StableRankPenalty
from workers.training.truncation import Norm, architecture, truncate

__all__ = ["BSRSettings", "StableRankTraining", "start_bsr"]


class StableRankSettings(SGDSettings):
    """How the dense network is trained towards low rank; see `SGDSettings`.

    The thesis does not say for how many epochs; its lambda is (0.02, 1.5) or (0.05, 1.5) on CIFAR and (1, 1.2) or
    (2, 1.2) for ResNet-50 on ImageNet.

    Attributes:
        strength: lambda at the start.
        growth: what it is multiplied by every `growth_epochs` epochs.
        refresh: steps between decompositions.
    """

    epochs: Annotated[int, Field(ge=0)] = 30
    strength: Annotated[float, Field(ge=0)] = 0.02
    growth: Annotated[float, Field(ge=1)] = 1.5
    growth_epochs: Annotated[int, Field(ge=1)] = 15
    refresh: Annotated[int, Field(ge=1)] = 64


class BSRSettings(TrainingSettings):
    """BSR.

    Attributes:
        training: with the penalty.
        fine_tuning: of the truncated network.
        norm: what the truncation between them minimises.
    """

    training: StableRankSettings = StableRankSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()
    norm: Norm = "weight"


class StableRankTraining:
    """The first phase: a copy of the dense network, trained with the penalty at fixed ranks.

    Attributes:
        penalty: on the layers that have a rank.
    """

    def __init__(self, settings: BSRSettings, setup: Setup, ranks: RankVector) -> None:
        self._settings, self._setup, self._ranks = settings, setup, ranks
        network = copy.deepcopy(setup.network)
        teacher = copy.deepcopy(setup.network).requires_grad_(False) if settings.training.distillation else None
        self._training = SGDTraining(
            network,
            setup.train,
            settings.training,
            seed=setup.seed,
            device=setup.device,
            method="bsr",
            teacher=teacher,
            after_backward=self._add_gradients,
        )
        self.penalty = StableRankPenalty(
            [
                PenalisedLayer(network.get_parameter(f"{layer.name}.weight"), layer, scheme, rank)
                for layer, scheme, rank in zip(setup.layers, setup.schemes, ranks, strict=True)
                if isinstance(rank, int)
            ],
            settings.training.refresh,
        )

    @property
    def epochs(self) -> int:
        """With the penalty."""
        return self._settings.training.epochs

    @property
    def network(self) -> nn.Module:
        """The network as it is."""
        return self._training.network

    def strength(self, epoch: int) -> float:
        """Lambda in an epoch, counted from 0."""
        settings = self._settings.training
        return float(settings.strength * settings.growth ** (epoch // settings.growth_epochs))

    def step(self) -> Metrics:
        """One epoch; says lambda, the sum of mSR and the mean share of energy beyond the ranks."""
        started = time.perf_counter()
        epoch = self._training.epochs
        strength = self.strength(epoch)
        self.penalty.begin_epoch(strength, generator(self._setup.seed, epoch, "stable rank"))
        result = self._training.epoch()
        penalty, tail = self.penalty.totals()
        return report(
            self.network,
            result,
            self._setup,
            epoch=epoch + 1,
            phase="bsr",
            started=started,
            strength=strength,
            stable_rank=penalty,
            tail_energy=tail,
        )

    def state(self) -> State:
        """The training's; subspaces are found again at the beginning of every epoch."""
        return self._training.state()

    def restore(self, state: State) -> None:
        """Goes on where `state()` was taken."""
        self._training.restore(state)

    def compress(self) -> Compressed:
        """Truncated at the ranks."""
        return truncate(self.network, self._setup, self._ranks, self._settings.norm)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """Cascades in the layers' places."""
        return architecture(self._setup, compressed.ranks)

    def _add_gradients(self, step: int) -> None:
        self.penalty(step)


def start_bsr(settings: BSRSettings, setup: Setup) -> SelectThenFineTune:
    """The trainable.

    Raises:
        ConfigError: the set-up has no ranks, a scheme without one matrix a layer, or samples that do not fit.
    """
    check_setup(setup, "bsr", needs_ranks=True)
    for scheme in setup.schemes:
        require_foldable(scheme, "bsr")
    assert setup.ranks is not None
    selection = StableRankTraining(settings, setup, fitted_ranks(setup, setup.ranks))
    return SelectThenFineTune("bsr", selection, settings.fine_tuning, setup)
