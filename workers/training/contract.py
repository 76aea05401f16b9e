"""What a trainable is: started from a set-up, stepped an epoch at a time, saved and restored, and finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from search_spaces.budgets import Budget
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.rank_space import RankSpace, RankVector
from search_spaces.schemes.contract import Scheme
from workers.batch import logits, run_model
from workers.causes import cause
from workers.datasets import check_labels
from workers.training.augmentation import ready
from workers.training.samples import Samples

__all__ = ["Compressed", "Metrics", "Setup", "State", "Trainable", "TrainingMethod", "TrainingSettings", "check_setup"]

State: TypeAlias = dict[str, Any]
"""What a trainable needs to go on: dicts and lists of tensors and JSON's types, loadable with `weights_only=True`."""


class TrainingSettings(BaseModel):
    """Base of every method's settings: an unknown key is an error, and so is a number that is infinite or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Setup:
    """What a method starts from; the same for every method of a comparison.

    Attributes:
        network: dense and trained; it is copied, never written to.
        layers, schemes: aligned with the space's layers.
        space: the ranks and their costs.
        budget: bound to the space.
        train: what weights are trained on; methods that need several parts split it by the seed.
        held_out: what accuracy is reported on, apart from `train`; never test data.
        seed: decides the order of samples, augmentation and every other draw.
        device: where it runs.
        ranks: a rank vector from a search, for methods that need one.
        ranks_stand: whether they are taken as they are: a network of these ranks was measured to be within the budget,
            which says more than its predicted cost.
    """

    network: nn.Module
    layers: tuple[Layer, ...]
    schemes: tuple[Scheme, ...]
    space: RankSpace
    budget: Budget
    train: Samples
    held_out: Samples
    seed: int = 0
    device: str = "cpu"
    ranks: RankVector | None = None
    ranks_stand: bool = False


@dataclass(frozen=True)
class Metrics:
    """What one epoch says.

    Attributes:
        epoch: epochs finished so far, over all phases of the method.
        phase: what was done in this one (`fine_tuning`, `msr`, ...).
        loss: mean training loss of the epoch, in nats, without penalties.
        learning_rate: at the epoch's end.
        seconds: the epoch took, its evaluation included.
        accuracy: on the held-out samples after the epoch, 0 to 1; of the network as it then is.
        accuracy_before: of the factorised network before it was fine-tuned; None as long as it is not factorised.
        compression: C(r) by cost name, as far as ranks are known.
        more: what else the method says of itself, by name.
    """

    epoch: int
    phase: str
    loss: float
    learning_rate: float
    seconds: float
    accuracy: float
    accuracy_before: float | None = None
    compression: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Compressed:
    """A smaller network.

    Attributes:
        network: made of ordinary torch layers; shares no tensor with the dense one.
        ranks: one per layer of the space.
        structure: in JSON's types, what else than the ranks its architecture follows from (the filters that are left).
    """

    network: nn.Module
    ranks: RankVector
    structure: Mapping[str, Any] = field(default_factory=dict)


class Trainable(Protocol):
    """The contract of every method. Deterministic for a seed on one thread of one kind of machine."""

    @property
    def epochs(self) -> int:
        """Steps from beginning to end, over all phases."""

    @property
    def done(self) -> bool:
        """Whether all of them were made."""

    def step(self) -> Metrics:
        """One epoch.

        Raises:
            TrialDivergedError: the loss is NaN or infinite.
            RuntimeError: it is done.
        """

    def state(self) -> State:
        """A copy of all that is needed to go on after the epochs made so far."""

    def restore(self, state: State) -> None:
        """Puts a freshly started trainable of the same set-up and settings where `state()` was taken.

        Going on gives what it would have given without the interruption, bit for bit on one thread.
        """

    def finish(self) -> Compressed:
        """The result, in eval mode, within the budget; to be called once it is done."""

    def architecture(self, compressed: Compressed) -> nn.Module:
        """A network of the shape that `ranks` and `structure` say, its weights to be loaded; `network` is not used."""


@dataclass(frozen=True)
class TrainingMethod:
    """A registered method.

    Attributes:
        settings: its block of the config.
        start: makes the trainable.
        needs_ranks: whether the set-up must hold a rank vector.
    """

    settings: type[TrainingSettings]
    start: Callable[[Any, Setup], Trainable]
    needs_ranks: bool = False


def check_setup(setup: Setup, method: str, needs_ranks: bool = False) -> None:
    """The network takes the samples and knows their classes; ranks are there where they are needed.

    Raises:
        ConfigError: naming what does not fit.
    """
    for name, samples in (("data.train", setup.train), ("data.validation_size", setup.held_out)):
        if not len(samples):
            raise ConfigError(name, "no samples; training needs some to learn from and some to be judged on")
    batch = setup.train.batch(torch.zeros(1, dtype=torch.long, device=setup.train.labels.device))
    network = setup.network.eval()
    try:
        with torch.no_grad():
            weight = next(network.parameters())
            example = batch.to(weight.device)
            outputs = logits(run_model(network, ready(example.inputs, setup.train.normalisation)))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError("data.train", f"the model does not take the samples: {cause(error)}") from None
    for samples in (setup.train, setup.held_out):
        check_labels(samples.labels, int(outputs.shape[-1]), "data.train")
    if needs_ranks and setup.ranks is None:
        raise ConfigError("sweep.ranks", f"{method} needs a rank vector from a search; name a run that has one")
