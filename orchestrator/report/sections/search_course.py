"""Section: how the search went, level by level, for each of its settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestrator.report.evaluations import Objective, beam_sizes, evaluations_of, objective_of, scored
from orchestrator.report.quantities import ABSENT, count, decimal, metric, percent, plural
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.svg import dress, inline_svg, ratio_tick, space_out
from orchestrator.report.task import targets, tolerance
from orchestrator.report.theme import COLOURS, LINES, line, series_colour

__all__ = ["levels", "search_course"]


def search_course(runs: Sequence[RunData]) -> Section | None:
    """Best and K-th score, compression and candidates of every level; None where no search has two levels."""
    (run,) = runs
    course = levels(run)
    if course.empty or course.groupby("search").size().max() < 2:
        return None
    searches = list(dict.fromkeys(course["search"]))
    objective = objective_of(run)
    svg = inline_svg(
        lambda figure: _paint(figure, run, course, objective), width_in=9.5, height_in=6.2, alt=_alt(run, course)
    )
    legend = [LegendEntry(name or "search", line(index), series_colour(index)) for index, name in enumerate(searches)]
    if course["kth"].notna().any():
        legend.append(LegendEntry("thin: the K-th best of the level", "thin", "muted"))
    if targets(run):
        legend.append(LegendEntry("window asked for", "bar", "bar"))
    caption = (
        "A candidate that two settings asked for is counted once, under the setting that asked first. "
        "Compression is that of each level's best candidate."
    )
    picture = Picture("The search's course", svg, caption, tuple(legend), _table(course, objective))
    return Section("The search, level by level", (_sentence(course, searches),), (picture,))


def levels(run: RunData) -> pd.DataFrame:
    """One row per search and level.

    Returns:
        Columns `search`, `level` (int), `candidates` (all), `scored`, `best` and `kth` (objective; NaN where there
        is none or fewer than K), `compression` (of the best).
    """
    objective = objective_of(run)
    every, good = evaluations_of(run), scored(run)
    every = every[np.isfinite(every["level"])]
    sizes = beam_sizes(run, list(dict.fromkeys(every["search"])))
    ranked = {key: objective.best_first(rows) for key, rows in good.groupby(["search", "level"], sort=False)}
    lines = []
    for key, rows in every.groupby(["search", "level"]):
        search, level = key
        best = ranked.get(key, good.iloc[:0])
        size = sizes.get(str(search), 0)
        lines.append(
            {
                "search": str(search),
                "level": int(level),
                "candidates": len(rows),
                "scored": len(best),
                "best": float(best[objective.column].iloc[0]) if len(best) else np.nan,
                "kth": float(best[objective.column].iloc[size - 1]) if 0 < size <= len(best) else np.nan,
                "compression": float(best["compression"].iloc[0]) if len(best) else np.nan,
            }
        )
    return pd.DataFrame(lines, columns=["search", "level", "candidates", "scored", "best", "kth", "compression"])


def _sentence(course: pd.DataFrame, searches: Sequence[str]) -> str:
    """How many levels each search had."""
    parts = [
        f"{search or 'the search'}: {plural(len(rows), 'level')}, {plural(int(rows['candidates'].sum()), 'candidate')}"
        for search in searches
        for rows in [course[course["search"] == search]]
    ]
    return "; ".join(parts[:8]) + (f"; and {len(parts) - 8} more." if len(parts) > 8 else ".")


def _paint(figure: Figure, run: RunData, course: pd.DataFrame, objective: Objective) -> None:
    """Three panels above one axis of levels: score, compression, candidates."""
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1, 0.8))
    space_out(figure)
    for index, (_, rows) in enumerate(course.groupby("search", sort=False)):
        # Few points are hard to see as a line alone.
        style = {"color": COLOURS[series_colour(index)].light, "linestyle": LINES[line(index)]}
        mark = {"marker": "o", "markersize": 3} if len(rows) <= 40 else {}
        top.plot(rows["level"], rows["best"], lw=2, **style, **mark)
        top.plot(rows["level"], rows["kth"], lw=0.8, **style)
        middle.plot(rows["level"], rows["compression"], **style, **mark)
        bottom.plot(rows["level"], rows["candidates"], drawstyle="steps-mid", **style)
    name = "Accuracy" if objective.column == "accuracy" else objective.name
    dress(top, title=f"{name}, best and K-th best of the level")
    dress(middle, title="Compression of the best candidate")
    dress(bottom, title="Candidates in the level", x_label="level")
    if objective.column == "accuracy" and course["best"].dropna().between(0, 1).all():
        top.yaxis.set_major_formatter(FuncFormatter(ratio_tick))
    middle.yaxis.set_major_formatter(FuncFormatter(ratio_tick))
    for target in list(targets(run).values())[:1]:
        # A line where the window is thinner than one would be.
        middle.axhspan(target - tolerance(run), target, color=COLOURS["bar"].light, lw=2)
    bottom.set_ylim(bottom=0)
    bottom.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bottom.xaxis.set_major_locator(MaxNLocator(12, integer=True))


def _alt(run: RunData, course: pd.DataFrame) -> str:
    """The picture in words."""
    deepest = int(course["level"].max())
    compressed = percent(course["compression"].max())
    return (
        f"{run.name}: three line charts over the levels of {plural(course['search'].nunique(), 'search setting')}, "
        f"up to level {deepest}: best and K-th best score, compression of the best (up to {compressed}), "
        "and number of candidates. The table below has the numbers."
    )


def _table(course: pd.DataFrame, objective: Objective) -> Table:
    """The levels, search by search."""
    name = objective.column

    def text(value: float) -> str:
        return metric(name, value) if name == "accuracy" else decimal(value)

    lines = [
        (
            row["search"] or ABSENT,
            str(row["level"]),
            text(row["best"]),
            text(row["kth"]),
            percent(row["compression"]),
            count(row["candidates"]),
            count(row["candidates"] - row["scored"]),
        )
        for row in course.to_dict("records")
    ]
    columns = [Column("Search", False), Column("Level"), Column("Best"), Column("K-th best")]
    columns += [Column("Compression of the best"), Column("Candidates"), Column("Without a score")]
    return table("Levels", columns, lines, limit=300, folded=True)
