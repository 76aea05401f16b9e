"""Where a trial has its rank vector from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.searches.registry import search_methods
from orchestrator.sweeps.trials import Trial, budget_text
from search_spaces.rank_space import RankVector

__all__ = ["FoundRanks", "RankSource", "RankVectors", "source_of"]


@dataclass(frozen=True)
class RankSource:
    """Where the rank vectors of some trials come from.

    Attributes:
        origin: `search`, a search's name, or a run directory.
        scheme: how the layers are factorised.
        text: the budget they must meet.
    """

    origin: str
    scheme: str
    text: str

    @property
    def searched(self) -> bool:
        """Whether the sweep itself runs a search for it."""
        return self.origin == "search" or self.origin in search_methods().names()

    @property
    def folder(self) -> str:
        """Where that search is kept, below the sweep."""
        limits = self.text.replace(", ", "+").replace(" ", "").replace("/", "")
        return f"ranks/{self.origin}-{self.scheme}-{limits}"


@dataclass(frozen=True)
class FoundRanks:
    """What a source gave.

    Attributes:
        ranks: the vector.
        stand: whether a network of these ranks was measured to be within the budget; see `Setup.ranks_stand`.
    """

    ranks: RankVector
    stand: bool = False


RankVectors = Mapping[RankSource, FoundRanks]


def source_of(trial: Trial) -> RankSource | None:
    """Where a trial has its ranks from; None where it needs none."""
    return None if trial.ranks_from is None else RankSource(trial.ranks_from, trial.scheme, budget_text(trial.budget))
