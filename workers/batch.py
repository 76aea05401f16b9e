"""A batch: samples with their labels, how a model is run on them, and how its outputs are judged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.errors import ConfigError
from workers.causes import cause

__all__ = ["Batch", "Inputs", "accuracy", "cross_entropy", "logits", "run_model", "stack"]

Inputs = torch.Tensor | dict[str, torch.Tensor]
"""A tensor `(N, ...)`, or several by the name of the forward's argument, each `(N, ...)`."""

LABEL_NAMES = ("labels", "label")
"""Under which a sample that is a dict carries its label (Hugging Face uses both)."""


@dataclass(frozen=True, eq=False)
class Batch:
    """N samples.

    Attributes:
        inputs: `(N, ...)` tensor, or a dict of such tensors.
        labels: `(N,)` int64 class labels, or `(N, ...)` where the task has more than one label a sample.
    """

    inputs: Inputs
    labels: torch.Tensor

    def __len__(self) -> int:
        """Number of samples N."""
        return int(self.labels.shape[0])

    def split(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of `size` samples, the last one possibly smaller; views, not copies."""
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        for start in range(0, len(self), size):
            yield self._between(start, start + size)

    def example(self) -> Batch:
        """The first sample, with a batch dimension of 1."""
        return self._between(0, 1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; itself where it is there already."""
        return Batch(self._inputs_by(lambda tensor: tensor.to(device)), self.labels.to(device))

    def cast(self, dtype: torch.dtype) -> Batch:
        """The same batch with floating-point inputs in another type; labels and whole numbers stay."""
        return Batch(self._inputs_by(lambda one: one.to(dtype) if one.is_floating_point() else one), self.labels)

    def channels_last(self) -> Batch:
        """The same batch with images' channels last in memory: convolutions are up to three times faster so."""
        return Batch(
            self._inputs_by(lambda one: one.contiguous(memory_format=torch.channels_last) if one.dim() == 4 else one),
            self.labels,
        )

    def at(self, places: torch.Tensor) -> Batch:
        """The samples at some places, `(n,)` int64, in that order; copies."""
        return Batch(self._inputs_by(lambda tensor: tensor[places]), self.labels[places])

    def _between(self, start: int, end: int) -> Batch:
        return Batch(self._inputs_by(lambda tensor: tensor[start:end]), self.labels[start:end])

    def _inputs_by(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        if isinstance(self.inputs, dict):
            return {name: change(tensor) for name, tensor in self.inputs.items()}
        return change(self.inputs)


def stack(samples: Sequence[Any], key: str = "data") -> Batch:
    """Makes a batch of samples, each a pair (input, label) or a dict with a "labels" entry.

    Args:
        samples: at least one; entries are tensors, numpy arrays or numbers, of one shape in all samples.
        key: config key of the data set, for messages.

    Raises:
        ConfigError: no sample, a sample of another kind, or samples of different shapes.

    Example:
        >>> len(stack([(torch.zeros(3, 32, 32), 7), (torch.ones(3, 32, 32), 1)]))
        2
    """
    if not samples:
        raise ConfigError(key, "no samples; a batch needs at least one")
    pairs = [_input_and_label(sample, position, key) for position, sample in enumerate(samples)]
    labels = _stack_one("labels", [label for _, label in pairs], key)
    if not isinstance(pairs[0][0], Mapping):
        return Batch(_stack_one("inputs", [value for value, _ in pairs], key), labels)
    names = list(pairs[0][0])
    for position, (value, _) in enumerate(pairs):
        if not isinstance(value, Mapping) or set(value) != set(names):
            shown = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise ConfigError(key, f"sample 0 has the entries {sorted(names)}, sample {position} has {shown}")
    return Batch({name: _stack_one(name, [value[name] for value, _ in pairs], key) for name in names}, labels)


def _input_and_label(sample: Any, position: int, key: str) -> tuple[Any, Any]:
    if isinstance(sample, Mapping):
        name = next((name for name in LABEL_NAMES if name in sample), None)
        if name is None:
            raise ConfigError(key, f"sample {position} has no 'labels', only {sorted(map(str, sample))}")
        return {other: value for other, value in sample.items() if other != name}, sample[name]
    if isinstance(sample, tuple | list) and len(sample) == 2:
        return sample[0], sample[1]
    kind = f"{type(sample).__name__} of {len(sample)}" if isinstance(sample, tuple | list) else type(sample).__name__
    raise ConfigError(key, f"sample {position} is a {kind}; expected (input, label) or a dict with 'labels'")


def _stack_one(name: str, values: list[Any], key: str) -> torch.Tensor:
    """Stacks one entry of all samples; names the first sample that does not fit."""
    tensors: list[torch.Tensor] = []
    for position, value in enumerate(values):
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                key, f"{name} of sample {position} is {type(value).__name__}, no tensor or number ({cause(error)})"
            ) from error
        if tensors and tensor.shape != tensors[0].shape:
            raise ConfigError(key, _different_shapes(name, position, tensor, tensors[0]))
        tensors.append(tensor)
    return torch.stack(tensors)


def _different_shapes(name: str, position: int, tensor: torch.Tensor, first: torch.Tensor) -> str:
    """What is wrong with a sample of another shape than the first one, and what would be right."""
    found = f"{name} of sample 0 is {_size(first)}, of sample {position} {_size(tensor)}"
    if name != "inputs" or tensor.dim() != 3 or first.dim() != 3:
        return f"{found}; all must have one shape (pad or crop them)"
    if tensor.shape[0] != first.shape[0]:
        return f"{found}: grey and colour images; give data.normalize 3 means (all become RGB) or 1 (all grey)"
    return f"{found}: images of different sizes; set data.image_size to resize them all"


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape) or "a single number"


def run_model(model: nn.Module, inputs: Inputs) -> object:
    """One forward pass.

    A tensor is the first argument. The entries of a dict go to the forward's arguments of the same names if it
    has them, or takes any; otherwise the dict itself is the first argument.

    Raises:
        ConfigError: the forward has arguments for some entries and not for others.
    """
    if isinstance(inputs, torch.Tensor):
        return model(inputs)
    parameters = inspect.signature(model.forward).parameters.values()
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if any(one.kind is one.VAR_KEYWORD for one in parameters) or named.issuperset(inputs):
        return model(**inputs)
    if named.isdisjoint(inputs):
        return model(inputs)
    strange = sorted(set(inputs) - named)
    raise ConfigError(
        "data", f"the model's forward has no argument {', '.join(map(repr, strange))}; drop it from the samples"
    )


def logits(outputs: object) -> torch.Tensor:
    """The logits among a model's outputs: a tensor, `.logits`, the entry "logits", or the first of a tuple or list.

    Raises:
        ConfigError: outputs of another kind.
    """
    found: object = outputs
    if not isinstance(found, torch.Tensor) and isinstance(getattr(found, "logits", None), torch.Tensor):
        found = found.logits  # type: ignore[attr-defined]
    elif isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    elif isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, torch.Tensor):
        return found
    entries = f" with the entries {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise ConfigError(
        "model",
        f"its output is of type {type(outputs).__name__}{entries}, in which no logits are found; return a tensor, "
        "something with `logits`, or a tuple that starts with them",
    )


def accuracy(outputs: object, batch: Batch) -> float:
    """Top-1 accuracy, from 0 to 1: the share of labels that the largest logit names.

    Args:
        outputs: holds logits `(..., C)`; see `logits`.
        batch: labels `(...)`.

    Returns:
        NaN where a logit is NaN or the batch is empty: such a network has no accuracy, and argmax would invent one.

    Raises:
        ConfigError: logits that do not fit the labels.
    """
    scores = logits(outputs)
    _check_fit(scores, batch.labels)
    if scores.numel() == 0 or bool(torch.isnan(scores).any()):
        return float("nan")
    hits = scores.argmax(dim=-1) == batch.labels.to(scores.device)
    return float(hits.double().mean())


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, differentiable.

    Args:
        logits: `(..., C)`; computed in float32 where they are of half precision.
        labels: `(...)` int64.

    Raises:
        ConfigError: logits that do not fit the labels.
    """
    _check_fit(logits, labels)
    scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1).to(scores.device))


def _check_fit(scores: torch.Tensor, labels: torch.Tensor) -> None:
    """Without this, labels of another shape would be broadcast and give a number that means nothing."""
    if scores.dim() == 0 or scores.shape[:-1] != labels.shape:
        raise ConfigError(
            "model",
            f"its logits are {_size(scores)} for labels {_size(labels)}; expected one row of class scores a label",
        )
