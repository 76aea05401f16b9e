"""What a search asks to have scored, and what it gets back. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from search_spaces.rank_space import RankVector

__all__ = ["Bound", "Candidate", "Key", "Precision", "Score", "Status"]

Status = Literal["ok", "stopped", "nan", "error", "lost", "timeout"]

Precision = Literal["float32", "bfloat16"]
"""Of the passes that score a candidate: `float32` is the type the model has, `bfloat16` one of 8 bits of mantissa."""

Key = tuple[RankVector, Precision]
"""What a score is kept by: scores of one rank vector in two precisions are two scores, and never stand in for each
other."""


@dataclass(frozen=True)
class Candidate:
    """A rank vector that a search wants scored.

    Attributes:
        ranks: the rank vector; with the precision it is the candidate's identity, and scored once in a run.
        parent: the rank vector it came from; candidates with one parent are scored together.
        changed: index of the layer in which it differs from its parent; None where there is no such layer.
        level: the search's level.
        search: which search asked (a setting such as `s10-k5`), for the record.
        precision: in which it is to be scored.
    """

    ranks: RankVector
    parent: RankVector | None = None
    changed: int | None = None
    level: int = 0
    search: str = ""
    precision: Precision = "float32"

    @property
    def key(self) -> Key:
        """What its score is kept by."""
        return self.ranks, self.precision


@dataclass(frozen=True)
class Score:
    """What one candidate scored on the validation batch.

    Attributes:
        ranks: the candidate.
        values: `accuracy` (or the user's metric; higher is better), `loss` (mean cross-entropy) and `kl`
            (mean KL divergence from the dense network's outputs, in nats); empty unless status is `ok`.
        seconds: time it took to score.
        worker: which evaluator scored it.
        status: `ok`, or why there are no values: `stopped` (it was certain to miss what it had to reach), `nan`
            (outputs not finite), `error` (the forward raised), `lost` (its evaluators kept dying), `timeout`.
        reason: why there are no values, in one line.
        at_most: where it was stopped, what its objective is certain not to be above.
        precision: in which it was scored.
    """

    ranks: RankVector
    values: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    worker: str = ""
    status: Status = "ok"
    reason: str = ""
    at_most: float = math.inf
    precision: Precision = "float32"

    @property
    def key(self) -> Key:
        """What it is kept by."""
        return self.ranks, self.precision

    @property
    def ok(self) -> bool:
        """Whether there are values."""
        return self.status == "ok"

    @property
    def stopped(self) -> bool:
        """Whether scoring was stopped early: no score, and no failure either."""
        return self.status == "stopped"


Bound = Callable[[RankVector], float | None]
"""What a candidate's objective must reach, of which more is better: one that is certain to be strictly below changes no
answer, and need not be scored to the end. Minus infinity: not known yet. None: its score is wanted in any case. Only of
candidates in float32; all others are scored to the end."""
