"""A member of a beam: a rank vector with its score and its place on the ladders, and how a search's state holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.candidates import Score
from search_spaces.rank_space import rank_vector_from

__all__ = ["Member", "Steps", "member_from_json", "member_to_json"]

Steps = tuple[int, ...]
"""Rungs of the layers' ladders (ranks, where ranks are numbers): above break-even a layer is dense, but its number
still falls."""


@dataclass(frozen=True)
class Member:
    """A rank vector in the beam."""

    steps: Steps
    score: Score


def member_to_json(member: Member) -> dict[str, Any]:
    """In JSON's types."""
    score = member.score
    return {
        "steps": list(member.steps),
        "ranks": list(score.ranks),
        "values": dict(score.values),
        "seconds": score.seconds,
        "worker": score.worker,
        "precision": score.precision,
    }


def member_from_json(member: Mapping[str, Any]) -> Member:
    """What `member_to_json` gave."""
    ranks = rank_vector_from(member["ranks"])
    precision = member.get("precision", "float32")  # runs of before had no other
    score = Score(ranks, dict(member["values"]), member["seconds"], member["worker"], precision=precision)
    return Member(tuple(member["steps"]), score)
