"""Screening: which children of a level are worth scoring, by what lowering the same layer cost a moment ago.

What a layer's step costs changes slowly from level to level: the beam moves by one layer at a time. So a child is
expected to lose what the same step lost when it was last measured, whichever beam member that was; a step that was
never measured is scored. As costs mostly grow while ranks fall, an old figure is too optimistic rather than too
pessimistic, and optimism is corrected at once, by scoring (the lazy greedy argument of Minoux, 1978). Against the
rest, the stalest steps of every level are measured again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from search_spaces.candidates import Precision, Score

__all__ = ["Prospect", "Screen", "ScreenSetting"]

T = TypeVar("T")


@dataclass(frozen=True)
class ScreenSetting:
    """How much is scored.

    Attributes:
        keep: the most promising children that are scored per level, as a multiple of the beam size.
        refresh: steps per level that are measured again because their figure is the oldest.
        precision: in which the levels are scored; the best few of the last one are then scored again in float32.
    """

    keep: float = 3.0
    refresh: int = 4
    precision: Precision = "float32"


@dataclass(frozen=True)
class Prospect:
    """A child before it is scored.

    Attributes:
        layer: index of the layer that it lowers.
        parent_loss: loss of its parent.
        tie: what decides between equal expectations.
    """

    layer: int
    parent_loss: float
    tie: bytes


@dataclass
class _Measured:
    """What a step of a layer did to the loss when it was last scored, and at which level that was."""

    change: float
    level: int


class Screen:
    """Remembers what steps cost and picks the children to score.

    Expectations are in terms of the loss whatever the objective: accuracy on a small batch does not tell steps apart.

    Args:
        setting: how much is scored.
        state: a former `state()`.
    """

    def __init__(self, setting: ScreenSetting, state: Mapping[str, Any] | None = None) -> None:
        self._setting = setting
        self._measured: dict[int, _Measured] = {}
        if state is not None:
            self._measured = {layer: _Measured(change, level) for layer, change, level in state["measured"]}

    def state(self) -> dict[str, Any]:
        """As JSON types."""
        measured = [[layer, one.change, one.level] for layer, one in sorted(self._measured.items())]
        return {"measured": measured}

    def choose(self, children: Sequence[tuple[Prospect, T]], beam_size: int) -> list[T]:
        """The children to score, in their given order."""
        known = [prospect for prospect, _ in children if prospect.layer in self._measured]
        by_promise = sorted(known, key=lambda one: (self._expected_loss(one), one.tie))
        promising = by_promise[: math.ceil(self._setting.keep * beam_size)]
        stale = sorted(known, key=lambda one: (self._measured[one.layer].level, self._expected_loss(one), one.tie))
        stalest: dict[int, Prospect] = {}
        for prospect in stale:
            stalest.setdefault(prospect.layer, prospect)
        again = list(stalest.values())[: self._setting.refresh]
        chosen = {*promising, *again}
        return [child for prospect, child in children if prospect.layer not in self._measured or prospect in chosen]

    def learn(self, prospect: Prospect, score: Score, level: int) -> None:
        """Takes a child's score; of a layer's figures of one level the cheapest is kept, in any order of arrival."""
        change = score.values["loss"] - prospect.parent_loss if score.ok else math.inf
        if math.isnan(change):
            change = math.inf
        old = self._measured.get(prospect.layer)
        if old is None or old.level < level or change < old.change:
            self._measured[prospect.layer] = _Measured(change, level)

    def _expected_loss(self, prospect: Prospect) -> float:
        return prospect.parent_loss + self._measured[prospect.layer].change
