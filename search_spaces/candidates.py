"""What a search asks to have scored, and what it gets back. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from search_spaces.rank_space import RankVector

__all__ = ["Candidate", "Score", "Status"]

Status = Literal["ok", "nan", "error", "lost", "timeout"]


@dataclass(frozen=True)
class Candidate:
    """A rank vector that a search wants scored.

    Attributes:
        ranks: the rank vector; it is the candidate's identity: one rank vector is scored once in a run.
        parent: the rank vector it came from; candidates with one parent are scored together.
        changed: index of the layer in which it differs from its parent; None where there is no such layer.
        level: the search's level.
        search: which search asked (a setting such as `s10-k5`), for the record.
    """

    ranks: RankVector
    parent: RankVector | None = None
    changed: int | None = None
    level: int = 0
    search: str = ""


@dataclass(frozen=True)
class Score:
    """What one candidate scored on the validation batch.

    Attributes:
        ranks: the candidate.
        values: `accuracy` (or the user's metric; higher is better), `loss` (mean cross-entropy) and `kl`
            (mean KL divergence from the dense network's outputs, in nats); empty unless status is `ok`.
        seconds: time it took to score.
        worker: which evaluator scored it.
        status: `ok`, or why there are no values: `nan` (outputs not finite), `error` (the forward raised),
            `lost` (its evaluators kept dying), `timeout`.
        reason: the failure in one line, where it failed.
    """

    ranks: RankVector
    values: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    worker: str = ""
    status: Status = "ok"
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether there are values."""
        return self.status == "ok"
