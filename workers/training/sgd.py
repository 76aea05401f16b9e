"""Training one network by SGD: the loop that every method shares, an epoch at a time and exactly resumable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from search_spaces.errors import ConfigError, TrialDivergedError
from workers.batch import Batch, logits, run_model
from workers.training.augmentation import Augmentation, ready
from workers.training.contract import State, TrainingSettings
from workers.training.samples import Samples, generator

__all__ = ["EpochResult", "Objective", "Rate", "SGDSettings", "SGDTraining", "cosine", "evaluate"]

Rate = Callable[[float], float]
"""The learning rate after so many epochs, fractions included."""

Objective = Callable[[torch.Tensor], torch.Tensor]
"""What is minimised, given the loss of the forward pass just made."""

CHECK_EVERY = 32
"""Steps between looks at the loss: a look makes a GPU wait."""

EVALUATION_SIZE = 512
"""Samples per forward pass that is judged."""


class SGDSettings(TrainingSettings):
    """How weights are trained.

    Attributes:
        epochs: over the training samples.
        batch_size: samples per step.
        learning_rate: the highest; it falls to 0 along half a cosine.
        warm_up_epochs: in which it first rises from 0.
        momentum: Nesterov's.
        weight_decay: of weights of two and more dimensions; biases and batch norms have none.
        label_smoothing: share of every label that is spread over all classes.
        distillation: weight of the KL divergence from the dense network's softened outputs, 0 to 1; the labels'
            cross-entropy has the rest.
        temperature: that softens both networks' outputs for it.
        clip_norm: the gradients' largest norm; None does not clip.
        precision: of activations in the forward and backward pass. `auto` is bfloat16 where it is fast (a GPU that has
            it, a CPU with AMX), float16 with loss scaling on any other GPU, float32 on any other CPU. Weights and
            their updates are float32 always.
        crop_padding, flip: augmentation, of samples that are images.
    """

    epochs: Annotated[int, Field(ge=0)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    warm_up_epochs: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 4.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    crop_padding: Annotated[int, Field(ge=0)] = 4
    flip: bool = True


@dataclass(frozen=True)
class EpochResult:
    """One epoch of training.

    Attributes:
        loss: mean over its steps, without what `after_backward` adds.
        learning_rate: of its last step.
        steps: how many.
    """

    loss: float
    learning_rate: float
    steps: int


def cosine(settings: SGDSettings) -> Rate:
    """Linear warm-up, then half a cosine down to 0 at the last epoch."""

    def rate(epochs: float) -> float:
        if epochs < settings.warm_up_epochs:
            return settings.learning_rate * epochs / settings.warm_up_epochs
        rest = max(settings.epochs - settings.warm_up_epochs, 1e-9)
        done = min((epochs - settings.warm_up_epochs) / rest, 1.0)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    return rate


class SGDTraining:
    """Trains one network in place; every epoch draws from generators that the seed and its number alone decide.

    Args:
        network: moved to the device, and its weights to channels_last memory; all its parameters are trained, or those
            of `optimizer`.
        samples: what it is trained on.
        settings: how.
        seed: of the samples' order, of augmentation, and of the network's own random operations (dropout).
        device: where.
        method: who trains, for messages.
        teacher: the dense network where distillation has a weight; left as it is.
        rate: the learning rate; `cosine` where left out.
        after_backward: called in every step between backward pass and update, with the number of steps made before; it
            may add to the parameters' gradients.
        objective: adds penalties to the loss where it is given; losses are reported without.
        optimizer: makes another one than SGD, called when the network is on the device. Its groups' learning rates are
            the rate times their `scale`, 1 where they have none.

    Attributes:
        epochs: finished so far.
        steps: made so far.
    """

    def __init__(
        self,
        network: nn.Module,
        samples: Samples,
        settings: SGDSettings,
        *,
        seed: int,
        device: str = "cpu",
        method: str = "training",
        teacher: nn.Module | None = None,
        rate: Rate | None = None,
        after_backward: Callable[[int], None] | None = None,
        objective: Objective | None = None,
        optimizer: Callable[[], torch.optim.Optimizer] | None = None,
    ) -> None:
        self.network: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.epochs = 0
        self.steps = 0
        self._samples = samples.to(device)
        self._settings, self._seed, self._device, self._method = settings, seed, torch.device(device), method
        self._rate = rate or cosine(settings)
        self._after_backward = after_backward
        self._objective = objective
        self._teacher = teacher.to(device).eval() if teacher is not None and settings.distillation else None
        self._augmentation = Augmentation(settings.crop_padding, settings.flip) if samples.are_images else None
        self._optimizer = optimizer() if optimizer else _optimizer(self.network.requires_grad_(True), settings)
        self._precision = _precision(settings, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._precision is torch.float16)

    def epoch(self) -> EpochResult:
        """Trains one epoch; the network is left in training mode.

        Raises:
            TrialDivergedError: the loss is NaN or infinite.
        """
        self.network.train()
        order = generator(self._seed, self.epochs, "order")
        draw = generator(self._seed, self.epochs, "augmentation")
        batches = list(self._samples.shuffled(self._settings.batch_size, order))
        total = torch.zeros((), device=self._device)
        with _seeded(generator(self._seed, self.epochs, "network"), self._device):
            for step, numbers in enumerate(batches, start=1):
                rate = self._set_rate(self.epochs + (step - 1) / len(batches))
                total += self._step(self._batch(numbers, draw))
                if (step % CHECK_EVERY == 0 or step == len(batches)) and not math.isfinite(float(total)):
                    raise TrialDivergedError(self._method, self.epochs + 1, rate)
        self.epochs += 1
        return EpochResult(float(total) / len(batches), rate, len(batches))

    def state(self) -> State:
        """A copy of weights, momentum, scale and counters."""
        return {
            "network": _copied(self.network.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "epochs": self.epochs,
            "steps": self.steps,
        }

    def restore(self, state: State) -> None:
        """Goes back to where `state()` was taken, on a network of the same architecture."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.epochs, self.steps = state["epochs"], state["steps"]

    def _batch(self, numbers: torch.Tensor, draw: torch.Generator) -> Batch:
        batch = self._samples.batch(numbers)
        inputs = batch.inputs
        if self._augmentation is not None and isinstance(inputs, torch.Tensor):
            inputs = self._augmentation(inputs, draw)
        return Batch(ready(inputs, self._samples.normalisation), batch.labels)

    def _set_rate(self, epochs: float) -> float:
        rate = self._rate(epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        return rate

    def _step(self, batch: Batch) -> torch.Tensor:
        """One update; the loss before it, not waited for."""
        loss = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(self._objective(loss) if self._objective else loss).backward()
        self._scaler.unscale_(self._optimizer)
        if self._after_backward is not None:
            self._after_backward(self.steps)
        if self._settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.steps += 1
        return loss.detach()

    def _loss(self, batch: Batch) -> torch.Tensor:
        settings = self._settings
        with _autocast(self._device, self._precision):
            scores = logits(run_model(self.network, batch.inputs)).float()
            reference = None
            if self._teacher is not None:
                with torch.no_grad():
                    reference = logits(run_model(self._teacher, batch.inputs)).float()
        loss = F.cross_entropy(scores, batch.labels, label_smoothing=settings.label_smoothing)
        if reference is None:
            return loss
        soft, target = (F.log_softmax(one / settings.temperature, dim=-1) for one in (scores, reference))
        # Times T^2, so that its gradients are as large as the cross-entropy's (Hinton et al., 2015).
        gap = F.kl_div(soft, target, reduction="batchmean", log_target=True) * settings.temperature**2
        return (1 - settings.distillation) * loss + settings.distillation * gap


def evaluate(network: nn.Module, samples: Samples, device: str = "cpu") -> tuple[float, float]:
    """(accuracy from 0 to 1, mean cross-entropy in nats) on samples; the network is left in eval mode.

    Outputs that are NaN count as wrong.
    """
    network.eval()
    samples = samples.to(device)
    hits = torch.zeros((), device=device)
    loss = torch.zeros((), device=device)
    with torch.inference_mode():
        for numbers in samples.in_order(EVALUATION_SIZE):
            batch = samples.batch(numbers)
            scores = logits(run_model(network, ready(batch.inputs, samples.normalisation))).float()
            hits += ((scores.argmax(-1) == batch.labels) & ~scores.isnan().any(-1)).sum()
            loss += F.cross_entropy(scores, batch.labels, reduction="sum")
    return float(hits) / len(samples), float(loss) / len(samples)


def _optimizer(network: nn.Module, settings: SGDSettings) -> torch.optim.SGD:
    parameters = list(network.parameters())
    decayed = [one for one in parameters if one.dim() > 1]
    others = [one for one in parameters if one.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )


def _precision(settings: SGDSettings, device: torch.device) -> torch.dtype:
    if settings.precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if settings.precision == "float16" and device.type == "cpu":
        raise ConfigError("sweep.precision", "float16 needs a GPU; take bfloat16 or float32 on a CPU")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.precision]


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it is a CPU with AMX: there bfloat16 halves the time of an epoch, elsewhere it may double it."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)  # torch has no public name for it
    return device.type == "cpu" and known is not None and bool(known())


def _autocast(device: torch.device, precision: torch.dtype) -> Any:
    return nullcontext() if precision is torch.float32 else torch.autocast(device.type, precision)


@contextmanager
def _seeded(source: torch.Generator, device: torch.device) -> Iterator[None]:
    """Global generators seeded for a while, for a network that draws numbers itself."""
    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(source.initial_seed() % 2**63)
        yield


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
