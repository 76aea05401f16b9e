"""Soft masks that harden as training goes on: LeSS' scheduled sigmoid, and what becomes of a mask in the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["ScheduledSigmoid", "rounded"]

MIDDLE = 0.5
"""A logit at which a mask is half open."""


@dataclass(frozen=True)
class ScheduledSigmoid:
    """sigma_s(x) = 1 / (1 + exp(-mu_i (x - 0.5))) with mu_i = min(most, start + growth i).

    LeSS' own numbers: 5, growing by 4 (CIFAR) or 8 (ImageNet) up to 50. At the start a logit of 1 gives a mask of
    0.924, not 1. What i counts is not said: updated every iteration, the sigmoid is as hard as it gets after twelve.
    Here the caller counts.
    """

    start: float = 5.0
    growth: float = 4.0
    most: float = 50.0

    @classmethod
    def over(cls, epochs: int | None, start: float, growth: float | None, most: float) -> ScheduledSigmoid:
        """A schedule; without a growth one that is at its limit in the last of so many epochs, if they are known."""
        if growth is None:
            growth = cls.growth if epochs is None else max(0.0, most - start) / max(1, epochs - 1)
        return cls(start, growth, most)

    def steepness(self, index: int) -> float:
        """mu_i."""
        return min(self.most, self.start + self.growth * index)

    def __call__(self, logits: torch.Tensor, index: int) -> torch.Tensor:
        """Masks in (0, 1), of the logits' shape."""
        return torch.sigmoid(self.steepness(index) * (logits - MIDDLE))


def rounded(logits: torch.Tensor) -> torch.Tensor:
    """Masks rounded to the nearest of 0 and 1, in the logits' dtype; half open counts as open.

    LeSS "rounds up", but every sigmoid rounds up to 1.
    """
    return (logits >= MIDDLE).to(logits.dtype)
