"""Fine-tuning a factorised network: what every method ends in."""

from __future__ import annotations

import copy
import time

from torch import nn

from search_spaces.rank_space import RankVector
from workers.training.contract import Compressed, Metrics, Setup, State
from workers.training.sgd import SGDSettings, SGDTraining, evaluate

__all__ = ["FineTuning", "FineTuningSettings"]


class FineTuningSettings(SGDSettings):
    """How a factorised network is trained; see `SGDSettings`."""


class FineTuning:
    """Trains all weights of a factorised network.

    Args:
        compressed: its network is trained in place.
        settings: how.
        setup: samples, seed, device, and the dense network as teacher.
        method: whose last phase this is, for messages.
        epochs_before: of the method's earlier phases: they count in `Metrics.epoch`.
        judge: whether to measure the accuracy before fine-tuning; a state that is restored knows it.

    Attributes:
        accuracy_before: on the held-out samples, 0 to 1.
    """

    def __init__(
        self,
        compressed: Compressed,
        settings: FineTuningSettings,
        setup: Setup,
        method: str = "fine_tuning",
        *,
        epochs_before: int = 0,
        judge: bool = True,
    ) -> None:
        self._ranks, self._setup, self._epochs_before = compressed.ranks, setup, epochs_before
        # Where filters were removed, ranks alone do not say what is left.
        self._compression: dict[str, float] = compressed.structure.get("compression") or {
            name: setup.space.compression(name, compressed.ranks) for name in setup.space.costs
        }
        teacher = copy.deepcopy(setup.network).requires_grad_(False) if settings.distillation else None
        self._training = SGDTraining(
            compressed.network,
            setup.train,
            settings,
            seed=setup.seed,
            device=setup.device,
            method=method,
            teacher=teacher,
        )
        self.accuracy_before = evaluate(self.network, setup.held_out, setup.device)[0] if judge else 0.0

    @property
    def network(self) -> nn.Module:
        """The network as it is."""
        return self._training.network

    @property
    def ranks(self) -> RankVector:
        """Its ranks."""
        return self._ranks

    @property
    def finished(self) -> int:
        """Epochs made."""
        return self._training.epochs

    def step(self) -> Metrics:
        """One epoch.

        Raises:
            TrialDivergedError: the loss is NaN or infinite.
        """
        started = time.perf_counter()
        result = self._training.epoch()
        accuracy, _ = evaluate(self.network, self._setup.held_out, self._setup.device)
        return Metrics(
            self._epochs_before + self.finished,
            "fine_tuning",
            result.loss,
            result.learning_rate,
            time.perf_counter() - started,
            accuracy,
            self.accuracy_before,
            self._compression,
        )

    def state(self) -> State:
        """A copy of what the training needs, and the accuracy it began with."""
        return {"training": self._training.state(), "accuracy_before": self.accuracy_before}

    def restore(self, state: State) -> None:
        """Goes on where `state()` was taken."""
        self._training.restore(state["training"])
        self.accuracy_before = state["accuracy_before"]
