"""The search method `mbs`: modified beam searches with several settings (s, K) side by side, the best kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from orchestrator.searches.beam_search import BeamSearch, BeamSetting, Start, TieBreak
from orchestrator.searches.contract import Problem, SearchMethod
from orchestrator.searches.screening import ScreenSetting
from orchestrator.searches.settings import SearchSettings, Strict
from orchestrator.searches.side_by_side import SideBySide
from search_spaces.candidates import Precision
from search_spaces.latency import limited_device

__all__ = ["MBS", "MBSSettings"]


class StepAndBeam(Strict):
    """One setting (s, K).

    Attributes:
        step: s, the ranks a child gives up in one layer.
        beam_size: K, the rank vectors kept per level.
    """

    step: Annotated[int, Field(ge=1)]
    beam_size: Annotated[int, Field(ge=1)]


class ScreeningSettings(Strict):
    """Score only what looks promising; see `orchestrator/searches/screening.py`.

    Attributes:
        keep: the most promising children scored per level, as a multiple of the beam size.
        refresh: steps per level that are measured again because their figure is the oldest.
        precision: of the passes that score the levels' candidates. In `bfloat16` they take less than half the time on
            processors that have it; the best few in the window are scored again in float32, and one of them is the
            answer. Where the network cannot be scored so, float32 is taken, which is said in one line.
    """

    keep: Annotated[float, Field(ge=1)] = 3.0
    refresh: Annotated[int, Field(ge=0)] = 4
    precision: Precision = "float32"


class MBSSettings(SearchSettings):
    """The `search` block of mBS.

    Attributes:
        tolerance: tau, the width of the window [C_d - tau, C_d] in which a search ends.
        settings: the (s, K) that run side by side; the thesis takes (3, 5), (5, 5), (10, 5).
        gamma, start, tie_break: see `BeamSetting`.
        screening: `{}` scores only the promising children; by default all are scored, as in the thesis.
    """

    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.005
    settings: tuple[StepAndBeam, ...] = (
        StepAndBeam(step=3, beam_size=5),
        StepAndBeam(step=5, beam_size=5),
        StepAndBeam(step=10, beam_size=5),
    )
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.5
    start: Start = "break_even"
    tie_break: TieBreak = "rank"
    screening: ScreeningSettings | None = None

    @property
    def stops_early(self) -> bool:
        """Not with screening, which learns from every score."""
        return self.early_stop and self.screening is None

    @property
    def screens_in(self) -> Precision:
        """As the screening has it."""
        return "float32" if self.screening is None else self.screening.precision

    @field_validator("settings")
    @classmethod
    def _distinct(cls, settings: tuple[StepAndBeam, ...]) -> tuple[StepAndBeam, ...]:
        if not settings:
            raise ValueError("is empty; give at least one {step, beam_size}")
        if len(set((one.step, one.beam_size) for one in settings)) < len(settings):
            raise ValueError("a setting stands twice")
        return settings

    @model_validator(mode="after")
    def _measured_in_float32(self) -> MBSSettings:
        """Networks are measured because of their scores, which must be those of one precision."""
        costs = [limit.cost for limit in self.limits(batch_size=1)]
        measured = [cost for cost in costs if limited_device(cost) is not None]
        if self.screens_in != "float32" and measured:
            raise ValueError(
                f"screening in {self.screens_in} and a budget of {measured[0]} do not go together; leave out "
                "screening.precision"
            )
        return self

    @model_validator(mode="after")
    def _dense_outside_the_window(self) -> MBSSettings:
        """A window that reaches down to C(r) = 0 would make the dense network the answer."""
        limits = self.limits(batch_size=1)
        furthest = max(limit.value if limit.kind == "ratio" else 1.0 for limit in limits)
        if not any(limit.exact for limit in limits) and self.tolerance >= furthest:
            raise ValueError(
                f"tolerance {self.tolerance:g} is not below C_d {furthest:g}, so that the dense network would do; "
                "take a small part of C_d, such as 0.005"
            )
        return self


def _start(settings: MBSSettings, problem: Problem, state: Mapping[str, Any] | None) -> SideBySide:
    # A limit that is measured holds to the end: the window then lies within it.
    budget, tolerance = problem.budget.from_within(problem.space, settings.tolerance)
    problem = replace(problem, budget=budget)
    wanted = settings.screening
    screening = None if wanted is None else ScreenSetting(wanted.keep, wanted.refresh, wanted.precision)
    beams = [
        BeamSetting(
            step=one.step,
            beam_size=one.beam_size,
            tolerance=tolerance,
            gamma=settings.gamma,
            start=settings.start,
            tie_break=settings.tie_break,
            screening=screening,
        )
        for one in settings.settings
    ]
    searches = {beam.name: BeamSearch(problem, beam, None if state is None else state.get(beam.name)) for beam in beams}
    return SideBySide(searches, problem.objective)


MBS = SearchMethod(MBSSettings, _start)
