"""Asynchronous successive halving: which trials are worth another epoch (Li et al., arXiv 1810.05934).

Ray Tune's own ASHA compares all trials with each other and forgets its rungs when a sweep is interrupted. Here a trial
competes only with those of its group (the same method under the same budget with the same seed: accuracy at 50 %
compression says nothing about accuracy at 72 %), and the rungs are filled again from what was recorded.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

__all__ = ["Halving"]


class Halving:
    """The rule, without Ray.

    Rungs are at `grace`, `grace x factor`, `grace x factor^2`, ... epochs. A trial that reaches a rung goes on if it is
    among the best `1 / factor` (rounded up) of its group that have reached it until now.

    Args:
        grace: epochs that every trial may have.
        factor: of how many trials one goes on.
    """

    def __init__(self, grace: int, factor: int) -> None:
        self._grace, self._factor = grace, factor
        self._rungs: dict[tuple[Hashable, int], dict[str, float]] = {}

    def is_rung(self, epoch: int) -> bool:
        """Whether trials are compared after so many epochs."""
        while epoch > self._grace and epoch % self._factor == 0:
            epoch //= self._factor
        return epoch == self._grace

    def goes_on(self, group: Hashable, trial: str, epoch: int, value: float) -> bool:
        """Takes down what a trial has reached, and says whether it goes on. Asking again changes nothing.

        Args:
            value: more is better; NaN counts as worst.
        """
        if not self.is_rung(epoch):
            return True
        rung = self._rungs.setdefault((group, epoch), {})
        rung[trial] = -math.inf if math.isnan(value) else value
        places = max(1, math.ceil(len(rung) / self._factor))
        return sum(other > rung[trial] for other in rung.values()) < places
