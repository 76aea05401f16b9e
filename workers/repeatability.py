"""Whether a model is a function of its inputs: random outputs, state, and writes to the inputs are refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from search_spaces.assembly import assemble
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, logits, run_model
from workers.scorer import Metric

__all__ = ["assembled_outputs", "check_repeatable", "metric_writes", "same_outputs"]

PASSES = 3
"""Passes of one network that must agree."""

PASSES_WITH_DRAWS = 20
"""The same where random numbers are drawn: dropout of few values may spare all of them in a pass or two."""


def check_repeatable(model: Callable[[], nn.Module], batch: Batch) -> None:
    """Passes of the same network over the same samples give the same, and leave the samples as they are.

    Args:
        model: makes a fresh copy of the dense network, in eval mode.
        batch: a few samples.

    Raises:
        ConfigError: they do not.
    """
    inputs = _copied(batch)
    network = model()
    before = _random_states()
    first = _outputs(network, inputs)
    drawn = _random_states() != before
    if not _equal_inputs(inputs, batch):
        raise ConfigError("model", "its forward writes to its inputs; let it work on a copy (`x = x.clone()`)")
    other = _outputs(model(), inputs)
    network = model()
    again = [_outputs(network, inputs) for _ in range(PASSES_WITH_DRAWS if drawn else PASSES)]
    if all(same_outputs(one, first) for one in (other, *again)):
        return
    if drawn or not same_outputs(other, first):
        raise ConfigError(
            "model",
            "two passes over the same samples give different outputs: dropout left on, or something else random in its "
            "forward; scores would mean nothing",
        )
    raise ConfigError(
        "model",
        "a second pass over the same samples gives different outputs: its forward keeps state from pass to pass (a "
        "counter, running statistics); make it a function of its input",
    )


def metric_writes(model: Callable[[], nn.Module], metric: Metric, batch: Batch) -> bool:
    """Whether the metric changes the outputs that it judges, which may be shared with other candidates."""
    with torch.inference_mode():
        outputs = run_model(model().eval(), batch.inputs)
        before = logits(outputs).clone()
        metric(outputs, batch)
        return not torch.equal(before.nan_to_num(), logits(outputs).nan_to_num())


def assembled_outputs(
    model: Callable[[], nn.Module],
    layers: Sequence[Layer],
    schemes: Sequence[Scheme],
    ranks: RankVector,
    factors: Mapping[str, Factors],
    batch: Batch,
) -> torch.Tensor | None:
    """The logits of the network that would be handed over; None where its forward raises."""
    return _outputs(assemble(model(), layers, schemes, ranks, factors), batch)


def same_outputs(one: torch.Tensor | None, other: torch.Tensor | None, computed_in: torch.dtype | None = None) -> bool:
    """Whether logits agree in half their digits: far above rounding, far below a wrong layer.

    Outputs that are not finite count as none at all.

    Args:
        computed_in: whose digits count; None takes the outputs' own type.
    """
    one, other = (None if value is None or not bool(value.isfinite().all()) else value for value in (one, other))
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    digits = torch.finfo(computed_in or one.dtype).eps ** 0.5 if one.is_floating_point() else 0.0
    largest = float(other.abs().max()) if other.numel() else 0.0
    return bool(((one.double() - other.double()).abs() <= digits * largest).all())


def _outputs(network: nn.Module, batch: Batch) -> torch.Tensor | None:
    with torch.inference_mode():
        try:
            return logits(run_model(network.eval(), batch.inputs)).clone()
        except ConfigError:
            raise
        except Exception:  # a network that cannot be run has no outputs
            return None


def _copied(batch: Batch) -> Batch:
    if isinstance(batch.inputs, dict):
        return Batch({name: tensor.clone() for name, tensor in batch.inputs.items()}, batch.labels)
    return Batch(batch.inputs.clone(), batch.labels)


def _equal_inputs(one: Batch, other: Batch) -> bool:
    """Equal in value, and `one` never written to."""
    pairs = [
        (tensor, other.inputs[name] if isinstance(other.inputs, dict) else other.inputs)
        for name, tensor in (one.inputs if isinstance(one.inputs, dict) else {"": one.inputs}).items()
    ]
    return all(mine._version == 0 and torch.equal(mine.nan_to_num(), theirs.nan_to_num()) for mine, theirs in pairs)


def _random_states() -> tuple[object, ...]:
    """Of the generators that a forward may draw from."""
    numpys: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpys[1].tobytes(), numpys[2:]
