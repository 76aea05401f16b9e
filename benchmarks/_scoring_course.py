"""The course of a search: which candidates it scored, level by level, what they scored and how long that took.

A course is a file of one JSON line per level, so that a search that was stopped goes on at its last level, and a
finished one can be timed again, or told about, without searching again. Between levels the plain pass scores a
candidate now and then: so the two are compared within the same minutes, however long the search takes.

Calls are cut, and told what candidates must reach, as by a pool that has one evaluator: how many are scored before
anything is known is part of the time. A course keeps its calls with their bounds.

Searches that differ in C_d alone are the same until one of them sees its window: that stretch is taken, with its times,
from a course that lies in the same folder.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from _scoring_network import Network
from _scoring_plain import PlainPass
from rich.console import Console

from orchestrator.dispatch import Dispatch, Work
from orchestrator.pool import IN_FLIGHT
from orchestrator.provenance import provenance
from orchestrator.searches.contract import Answer
from search_spaces.candidates import Candidate, Precision, Score
from search_spaces.rank_space import RankVector
from workers.scorer import Change, child_of
from workers.ways import Scorer

__all__ = ["Course", "Group", "Level", "groups_of", "run_course", "score_groups"]

PLAIN_SHARE = 0.05
"""Seconds of plain passes for a second of the search."""


@dataclass(frozen=True)
class Group:
    """Candidates that are scored together, as changes of one parent, and what each must reach; none stops nobody.

    All are scored in one precision.
    """

    parent: RankVector
    changes: tuple[Change, ...]
    bounds: tuple[float | None, ...] = ()
    precision: Precision = "float32"

    @property
    def children(self) -> list[RankVector]:
        """Their rank vectors."""
        return [child_of(self.parent, change) for change in self.changes]


@dataclass(frozen=True)
class Level:
    """One level of a search.

    Attributes:
        groups: its candidates by parent.
        values: what they scored, in the same order; empty where a candidate has no score: it was stopped, or failed.
        seconds: scoring and the search's own time.
        plain_seconds: of single plain passes after the level.
    """

    groups: tuple[Group, ...]
    values: tuple[tuple[dict[str, float], ...], ...]
    seconds: float
    plain_seconds: tuple[float, ...]

    @property
    def candidates(self) -> int:
        """How many were scored, stopped ones included."""
        return sum(len(group.changes) for group in self.groups)

    @property
    def without_values(self) -> int:
        """How many of them were stopped early, or failed."""
        return sum(not one for group in self.values for one in group)


@dataclass(frozen=True)
class Course:
    """A finished search.

    Attributes:
        levels: in order.
        answer: what it ended with.
        skipped: candidates that it left unscored.
        git_commits: of the code that took the levels' times.
    """

    levels: tuple[Level, ...]
    answer: Answer
    skipped: int
    git_commits: tuple[str, ...]

    @property
    def candidates(self) -> int:
        """How many were scored, stopped ones included."""
        return sum(level.candidates for level in self.levels)

    @property
    def in_bfloat16(self) -> int:
        """How many of them were scored in bfloat16."""
        groups = (group for level in self.levels for group in level.groups)
        return sum(len(group.changes) for group in groups if group.precision == "bfloat16")

    @property
    def without_values(self) -> int:
        """How many of them were stopped early, or failed."""
        return sum(level.without_values for level in self.levels)

    @property
    def seconds(self) -> float:
        """Of the search, without the plain passes."""
        return sum(level.seconds for level in self.levels)

    @property
    def plain_seconds(self) -> list[float]:
        """Of single plain passes, spread over the search."""
        return [seconds for level in self.levels for seconds in level.plain_seconds]


def groups_of(candidates: Sequence[Candidate]) -> list[Group]:
    """Candidates by parent; one without a parent is its own."""
    changes: dict[RankVector, list[Change]] = {}
    for candidate in candidates:
        parent = candidate.parent or candidate.ranks
        changes.setdefault(parent, []).append(_change(parent, candidate))
    return [Group(parent, tuple(found)) for parent, found in changes.items()]


def _change(parent: RankVector, candidate: Candidate) -> Change:
    return {index: rank for index, rank in enumerate(candidate.ranks) if rank != parent[index]}


def score_groups(scorer: Scorer, groups: Sequence[Group]) -> list[list[Score]]:
    """Scores every group, in order."""
    return [
        [
            replace(score, precision=group.precision)
            for score in scorer.score(group.parent, group.changes, group.bounds or None)
        ]
        for group in groups
    ]


def run_course(network: Network, file: Path) -> Course:
    """Runs the network's search in this process with the fast scorer, or reads it where it was run before.

    Args:
        file: of the course; a search that is recorded in part goes on from there. One of another search, network or
            batch is put aside.
    """
    header = _header(network)
    lines = _read(file, header)
    if not lines:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            file.replace(file.with_name(f"{file.name}.old"))
        (file.parent / ".gitignore").write_text("*\n", encoding="utf-8")  # megabytes that one machine alone can use
        file.write_text(json.dumps(header) + "\n", encoding="utf-8")
    if not lines:
        lines = _shared(network, file, header)
        with file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)
    search = network.start_search(lines[-1]["state"] if lines else None)
    levels = [_level(line) for line in lines]
    commits = {line["git_commit"] for line in lines}
    if not search.done:
        for level in levels:
            search.tell([score for scores in _scores(level) for score in scores])
        runner = _Runner(network, file, sum(level.seconds for level in levels), _plain_total(levels))
        levels += runner.run(search)
        commits.add(runner.commit)
    if search.best is None:
        raise RuntimeError(f"{network.name}: the search scored nothing")
    return Course(tuple(levels), search.best, search.skipped, tuple(sorted(commits)))


class _Runner:
    """Runs a search to its end and records every level."""

    def __init__(self, network: Network, file: Path, search_seconds: float, plain_seconds: float) -> None:
        self.commit = str(provenance({"model": "", "data": ""})["git_commit"])
        self._network, self._file = network, file
        precisions = dict.fromkeys(("float32", network.prepared.config.search.screens_in))
        self._scorers = {precision: network.fast_scorer(precision) for precision in precisions}
        self._plain = PlainPass(network)
        self._dispatch, self._stops = Dispatch(mix_parents=True), network.prepared.config.search.stops_early
        self._search_seconds, self._plain_seconds = search_seconds, plain_seconds
        first = [Group(network.prepared.space.dense, ({},))]
        for scorer in self._scorers.values():
            score_groups(scorer, first)  # torch warms up
        self._plain.time(first[0].parent)

    def run(self, search: Any) -> list[Level]:
        """The levels until the search is done."""
        levels: list[Level] = []
        with Console(stderr=True).status("") as status:
            while True:
                started = time.perf_counter()
                asked = search.ask()
                if search.done:
                    return levels
                groups, scores = self._score(search, asked)
                seconds = time.perf_counter() - started
                self._search_seconds += seconds
                values = tuple(tuple(dict(score.values) for score in group) for group in scores)
                level = Level(tuple(groups), values, seconds, self._time_plain(groups))
                levels.append(level)
                self._write(level, search.state())
                status.update(f"{self._file.stem}: level {search.level}, {self._search_seconds:.0f} s")

    def _score(self, search: Any, asked: list[Candidate]) -> tuple[list[Group], list[list[Score]]]:
        """Scores a level in the calls that a pool of one evaluator makes, some of them cut while another runs."""
        self._dispatch.add(asked, bound=search.bound if self._stops else None)
        groups: list[Group] = []
        found: list[list[Score]] = []
        waiting: deque[Work] = deque()
        while True:
            while len(waiting) < IN_FLIGHT and (work := self._dispatch.next(1, ahead=bool(waiting))) is not None:
                waiting.append(work)
            if not waiting:
                return groups, found
            work = waiting.popleft()
            changes = tuple(_change(work.parent, candidate) for candidate in work.candidates)
            groups.append(Group(work.parent, changes, work.bounds, work.precision))
            started = time.perf_counter()
            found += score_groups(self._scorers[work.precision], groups[-1:])
            self._dispatch.took(time.perf_counter() - started, len(work.candidates))
            search.tell(found[-1])

    def _time_plain(self, groups: Sequence[Group]) -> tuple[float, ...]:
        """Plain passes over candidates of a level until they have their share of the time; at least one in a course."""
        children = [ranks for group in groups for ranks in group.children]
        taken: list[float] = []
        while len(taken) < len(children) and self._plain_seconds <= PLAIN_SHARE * self._search_seconds:
            taken.append(self._plain.time(children[len(taken) * 7919 % len(children)])[0])
            self._plain_seconds += taken[-1]
        return tuple(taken)

    def _write(self, level: Level, state: dict[str, Any]) -> None:
        line = {
            "groups": [
                [group.parent, [list(change.items()) for change in group.changes], group.bounds, group.precision]
                for group in level.groups
            ],
            "values": level.values,
            "seconds": level.seconds,
            "plain_seconds": level.plain_seconds,
            "git_commit": self.commit,
            "state": state,
        }
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _header(network: Network) -> Any:
    """What a course must have been recorded with to be of use.

    Settings at their defaults are left out, so that a new one does not make hours of searching worthless; those of
    screening are all there, because they are what is tried, but for the precision that there was before others.
    """
    search = network.prepared.config.search
    screening = search.model_dump()["screening"]
    if screening is not None and screening["precision"] == "float32":
        del screening["precision"]
    settings = search.model_dump(exclude_defaults=True) | {"screening": screening}
    calls = "candidates stopped early" if search.stops_early else "several parents together"
    header = {
        "search": settings,
        "fingerprints": network.prepared.fingerprints,
        "calls": f"as a pool of one evaluator cuts them, {calls}",
    }
    return json.loads(json.dumps(header))


def _read(file: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The levels' lines; a last line that was cut short is taken off the file."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    lines = [json.loads(line) for line in whole.splitlines()]
    return lines[1:] if lines and lines[0] == header else []


def _shared(network: Network, file: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the longest stretch that this search shares with one beside it that has another C_d."""
    stretches = [_stretch(network, other, header) for other in sorted(file.parent.glob("*.jsonl")) if other != file]
    return max(stretches, key=len, default=[])


def _stretch(network: Network, other: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Its levels that this search asks for too, until a candidate reaches the window of either."""
    with other.open(encoding="utf-8") as stream:
        theirs = json.loads(stream.readline())
    ours, asked_of_them = ({**one["search"], "budget": None} for one in (header, theirs))
    if {**theirs, "search": asked_of_them} != {**header, "search": ours}:
        return []
    targets = [one["search"]["budget"]["parameters"] for one in (header, theirs)]
    window = min(targets) - network.prepared.config.search.model_dump()["tolerance"]
    compression = partial(network.prepared.space.compression, "parameters")
    shared: list[dict[str, Any]] = []
    for line in _read(other, theirs):
        children = {ranks for group in _level(line).groups for ranks in group.children}
        asked = network.start_search(shared[-1]["state"] if shared else None).ask()
        if children != {one.ranks for one in asked} or max(map(compression, children)) >= window:
            break
        shared.append(line)
    return shared


def _level(line: dict[str, Any]) -> Level:
    groups = tuple(
        Group(tuple(parent), tuple(dict(change) for change in changes), *_rest(*rest))
        for parent, changes, *rest in line["groups"]
    )
    values = tuple(tuple(group) for group in line["values"])
    return Level(groups, values, line["seconds"], tuple(line["plain_seconds"]))


def _rest(bounds: Sequence[float | None] = (), precision: Precision = "float32") -> tuple[Any, Precision]:
    """What older courses leave out of a group."""
    return tuple(bounds), precision


def _scores(level: Level) -> list[list[Score]]:
    return [
        [Score(ranks, one, precision=group.precision) for ranks, one in zip(group.children, values, strict=True) if one]
        for group, values in zip(level.groups, level.values, strict=True)
    ]


def _plain_total(levels: Sequence[Level]) -> float:
    return sum(seconds for level in levels for seconds in level.plain_seconds)
