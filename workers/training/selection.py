"""The shape of every trained method: select ranks (and train meanwhile), factorise, fine-tune."""

from __future__ import annotations

import copy
import time
from typing import Any, Protocol

import torch
from torch import nn

from search_spaces.rank_space import rank_vector_from
from workers.training.contract import Compressed, Metrics, Setup, State
from workers.training.fine_tuning import FineTuning, FineTuningSettings
from workers.training.sgd import EpochResult, evaluate

__all__ = ["SelectThenFineTune", "Selection", "report"]


class Selection(Protocol):
    """What a method does before fine-tuning."""

    @property
    def epochs(self) -> int:
        """Steps that it takes; 0 where ranks are known from the start."""

    def step(self) -> Metrics:
        """One epoch; `Metrics.epoch` counts this selection's epochs."""

    def state(self) -> State:
        """A copy of all that is needed to go on."""

    def restore(self, state: State) -> None:
        """Puts a fresh selection where `state()` was taken."""

    def compress(self) -> Compressed:
        """The factorised network within the budget, not fine-tuned yet; called once, after the last step."""

    def architecture(self, compressed: Compressed) -> nn.Module:
        """A network of the shape that `ranks` and `structure` say, its weights to be loaded; `network` is not used."""


class SelectThenFineTune:
    """A trainable of two phases.

    Args:
        method: its name.
        selection: the first phase.
        settings: of the second.
        setup: what it starts from.
    """

    def __init__(self, method: str, selection: Selection, settings: FineTuningSettings, setup: Setup) -> None:
        self._method, self._selection, self._settings, self._setup = method, selection, settings, setup
        self._selected = 0
        self._fine_tuning: FineTuning | None = None
        self._structure: dict[str, Any] = {}

    @property
    def epochs(self) -> int:
        """Of both phases."""
        return self._selection.epochs + self._settings.epochs

    @property
    def done(self) -> bool:
        """Whether both are over."""
        tuned = 0 if self._fine_tuning is None else self._fine_tuning.finished
        return self._selected + tuned >= self.epochs

    def step(self) -> Metrics:
        """One epoch of the phase at hand; between the two the network is factorised."""
        if self.done:
            raise RuntimeError(f"{self._method} is done after {self.epochs} epochs")
        if self._selected < self._selection.epochs:
            metrics = self._selection.step()
            self._selected += 1
            return metrics
        return self._tuned().step()

    def state(self) -> State:
        """Of the phase at hand; ranks and structure say which network the second one trains."""
        if self._fine_tuning is None:
            return {"phase": "selection", "selected": self._selected, "selection": self._selection.state()}
        return {
            "phase": "fine_tuning",
            "selected": self._selected,
            "ranks": [list(one) if isinstance(one, tuple) else one for one in self._fine_tuning.ranks],
            "structure": self._structure,
            "fine_tuning": self._fine_tuning.state(),
        }

    def restore(self, state: State) -> None:
        """Puts a freshly started trainable where `state()` was taken."""
        self._selected = state["selected"]
        if state["phase"] == "selection":
            self._selection.restore(state["selection"])
            return
        described = Compressed(self._setup.network, rank_vector_from(state["ranks"]), state["structure"])
        network = self._selection.architecture(described)
        self._begin(Compressed(network, described.ranks, described.structure), judge=False)
        self._tuned().restore(state["fine_tuning"])

    def finish(self) -> Compressed:
        """The fine-tuned network, a copy in eval mode and ordinary memory on the CPU."""
        tuned = self._tuned()
        network: nn.Module = copy.deepcopy(tuned.network).cpu().to(memory_format=torch.contiguous_format)
        return Compressed(network.eval(), tuned.ranks, self._structure)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """A network of the shape that `finish` gave."""
        return self._selection.architecture(compressed)

    def _tuned(self) -> FineTuning:
        """The second phase, begun when it is first asked for."""
        if self._fine_tuning is None:
            self._begin(self._selection.compress(), judge=True)
        assert self._fine_tuning is not None
        return self._fine_tuning

    def _begin(self, compressed: Compressed, judge: bool) -> None:
        self._structure = dict(compressed.structure)
        self._fine_tuning = FineTuning(
            compressed, self._settings, self._setup, self._method, epochs_before=self._selection.epochs, judge=judge
        )


def report(
    network: nn.Module, result: EpochResult, setup: Setup, *, epoch: int, phase: str, started: float, **more: float
) -> Metrics:
    """The metrics of an epoch that a selection has trained.

    Args:
        network: judged on the held-out samples.
        started: `time.perf_counter()` at the epoch's beginning.
        more: what else is said of it.
    """
    accuracy, _ = evaluate(network, setup.held_out, setup.device)
    seconds = time.perf_counter() - started
    return Metrics(epoch, phase, result.loss, result.learning_rate, seconds, accuracy, more=more)
