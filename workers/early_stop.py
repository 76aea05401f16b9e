"""Stopping a child early: once it is certain that it cannot reach what it must, its other samples are not looked at.

Every objective with a rule here is a mean over samples of terms that have a ceiling: a hit counts at most 1, and minus
a loss or minus a divergence at most 0. So what a child has reached on some samples bounds what it can reach on all.
Samples on which its parent did badly come first: there its children do badly, too, and give themselves away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from search_spaces.rank_space import RankVector
from workers.batch import Batch, logits

__all__ = ["SLACK", "STOP_RULES", "STOP_SLICE", "OrderedSlice", "SampleOrders", "StopRule", "Tally", "ordered_slices"]

STOP_SLICE = 16
"""Samples between two looks at whether a child can be stopped.

All slices have this size, whatever the order of the samples: kernels compute a sample alike in every slice of one size,
so that a child's score depends neither on its parent nor on whether it could have been stopped.
"""

SLACK = 1e-8
"""What is certain is certain beyond this: totals are rounded to 1e-9, and sums have their own last digits."""

REMEMBERED_BYTES = 16 << 20
"""Of sample values that scored children leave, for the day when they are parents."""


@dataclass(frozen=True)
class StopRule:
    """How an objective adds up over samples.

    Attributes:
        value: which of the values of a sample is its term, up to the sign.
        sign: of the term; -1 where less is better.
        ceiling: the most that one sample's term can be.
        hard_by: which of the values is large for hard samples.
    """

    value: str
    sign: float
    ceiling: float
    hard_by: str


STOP_RULES: Mapping[str, StopRule] = MappingProxyType(
    {
        "accuracy": StopRule("accuracy", 1.0, 1.0, "loss"),
        "cross_entropy": StopRule("loss", -1.0, 0.0, "loss"),
        "kl": StopRule("kl", -1.0, 0.0, "kl"),
    }
)
"""By objective."""


@dataclass(frozen=True)
class OrderedSlice:
    """Some samples of the batch, of which the last `n` were in no slice before.

    Attributes:
        places: `(n,)` int64, where the new ones stand in the batch as it is stored.
        part: all samples of the slice.
        reference: of all, `(samples, classes)`, the dense network's log-probabilities.
    """

    places: torch.Tensor
    part: Batch
    reference: torch.Tensor

    def values(self, outputs: object) -> dict[str, torch.Tensor] | None:
        """`accuracy` (a hit is 1), `loss`, `kl` of the new samples, `(n,)` float64; None where an output is not finite.

        As `judge` has them, before the mean. KL is not below 0; where float32 says so, it is rounding.
        """
        raw = logits(outputs).float()
        if not bool(torch.isfinite(raw).all()):
            return None
        labels = self.part.labels.long()
        log_probabilities = torch.log_softmax(raw, dim=-1)
        gap = (self.reference.exp() * (self.reference - log_probabilities)).sum(-1)
        found = {
            "accuracy": raw.argmax(dim=-1) == labels,
            "loss": -log_probabilities.gather(-1, labels[:, None])[:, 0],
            "kl": gap.clamp_min(0.0),
        }
        return {name: values[-len(self.places) :].double() for name, values in found.items()}


def ordered_slices(batch: Batch, references: torch.Tensor, order: torch.Tensor) -> Iterator[OrderedSlice]:
    """The batch in slices of `STOP_SLICE`, in an order; the samples are copied slice by slice, as they are asked for.

    The last slice is filled up with samples of the one before, so that it has the same size.

    Args:
        references: `(N, classes)`.
        order: `(N,)`, places in the batch.
    """
    for start in range(0, len(order), STOP_SLICE):
        end = min(start + STOP_SLICE, len(order))
        taken = order[max(0, end - STOP_SLICE) : end]
        yield OrderedSlice(order[start:end], batch.at(taken), references[taken])


class Tally:
    """A child's sample values as they come in, whatever their order.

    Args:
        rule: of the objective.
        bound: the objective that the child must reach.
        samples: in the batch.
    """

    def __init__(self, rule: StopRule, bound: float, samples: int) -> None:
        self._rule, self._bound, self._samples = rule, bound, samples
        self._left, self._sum = samples, 0.0
        self._values: dict[str, torch.Tensor] = {}

    def add(self, places: torch.Tensor, values: Mapping[str, torch.Tensor]) -> None:
        """Takes the values of the samples at some places, `(n,)` each."""
        for name, value in values.items():
            self._values.setdefault(name, torch.zeros(self._samples, dtype=torch.float64))[places] = value.cpu()
        self._sum += self._rule.sign * float(values[self._rule.value].sum())
        self._left -= len(places)

    @property
    def at_most(self) -> float:
        """What the objective is certain not to be above."""
        return (self._sum + self._rule.ceiling * self._left) / self._samples + SLACK

    @property
    def hopeless(self) -> bool:
        """Whether samples are left, and the bound is certain to be missed."""
        return self._left > 0 and self.at_most < self._bound

    @property
    def reason(self) -> str:
        """Why it is hopeless, in one clause."""
        word = "most" if self._rule.sign > 0 else "least"
        name = self._rule.value
        return (
            f"its {name} is at {word} {abs(self.at_most):.4g}, and {abs(self._bound):.4g} was reached by enough others"
        )

    def totals(self) -> dict[str, float]:
        """Sums over all samples, in the order in which they are stored: the same for every order of arrival."""
        return {name: float(values.sum()) for name, values in self._values.items()}

    def hardness(self) -> torch.Tensor:
        """`(N,)` float32: how hard the child found every sample."""
        return self._values[self._rule.hard_by].float()


class SampleOrders:
    """Remembers how hard networks found the samples; the least lately used are forgotten."""

    def __init__(self) -> None:
        self._hardness: OrderedDict[RankVector, torch.Tensor] = OrderedDict()
        self._bytes = 0

    def remember(self, ranks: RankVector, hardness: torch.Tensor) -> None:
        """Takes the hardness of all samples, `(N,)`."""
        if ranks not in self._hardness:
            self._bytes += hardness.numel() * hardness.element_size()
        self._hardness[ranks] = hardness
        self._hardness.move_to_end(ranks)
        while self._bytes > REMEMBERED_BYTES and len(self._hardness) > 1:
            _, forgotten = self._hardness.popitem(last=False)
            self._bytes -= forgotten.numel() * forgotten.element_size()

    def of(self, ranks: RankVector) -> torch.Tensor | None:
        """Places of the samples, the hardest first, the first of equals first; None of a network nobody remembers."""
        if ranks not in self._hardness:
            return None
        self._hardness.move_to_end(ranks)
        return torch.argsort(self._hardness[ranks], descending=True, stable=True)
