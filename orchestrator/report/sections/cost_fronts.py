"""Section: accuracy against each cost, with the Pareto front of all scored candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestrator.report.evaluations import cost_names, scored
from orchestrator.report.pareto import pareto_front
from orchestrator.report.quantities import cost_label, metric, percent
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.svg import dress, inline_svg, ratio_tick
from orchestrator.report.task import compression, score, targets
from orchestrator.report.theme import COLOURS
from orchestrator.report.thinning import one_per_cell

__all__ = ["PANELS_A_ROW", "cost_fronts", "panels", "percent_axis", "points_of"]

PANELS_A_ROW = 3
_MOST_ROWS = 150


def cost_fronts(runs: Sequence[RunData]) -> Section | None:
    """Accuracy against compression in every cost; None where no candidate has a score and no network was chosen."""
    (run,) = runs
    costs = cost_names(run)
    rows = scored(run)
    rows = rows[np.isfinite(rows["accuracy"])]
    chosen = score(run, "compressed", "validation", "accuracy")
    if not costs or (rows.empty and chosen is None):
        return None
    drawn = {cost: _points(rows, cost) for cost in costs}
    rows_of_panels = math.ceil(len(costs) / PANELS_A_ROW)
    svg = inline_svg(
        lambda figure: _paint(figure, run, drawn),
        width_in=9.5,
        height_in=3.3 * rows_of_panels,
        alt=_alt(run, drawn, chosen),
    )
    picture = Picture("Accuracy against cost", svg, _caption(run, drawn), _legend(run), _table(rows, costs))
    text = (
        "Compression is 1 − cost ÷ cost of the dense layers, over the layers searched. A candidate is on the Pareto "
        "front if no other one compresses at least as much and is at least as accurate, and better in one of the two. "
        "Accuracy is that on the validation data."
    )
    return Section("Accuracy against each cost", (text,), (picture,))


def panels(figure: Figure, amount: int) -> list[Axes]:
    """Axes side by side, three a row, with one scale of accuracy."""
    across = min(amount, PANELS_A_ROW)
    grid = figure.subplots(math.ceil(amount / across), across, sharey=True, squeeze=False)
    for surplus in list(grid.flat)[amount:]:
        surplus.set_visible(False)
    return list(grid.flat)[:amount]


def percent_axis(axes: Axes, rows: pd.DataFrame) -> None:
    """Compression in percent across; accuracy in percent upwards where it is a ratio."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(ratio_tick))
    if rows["accuracy"].between(0, 1).all():
        axes.yaxis.set_major_formatter(FuncFormatter(ratio_tick))


def points_of(rows: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Columns `x`, compression in one cost, and `accuracy`, of the rows that have both."""
    x = rows.get(f"compression_{cost}", pd.Series(np.nan, rows.index))
    points = pd.DataFrame({"x": x, "accuracy": rows["accuracy"]}).astype(float)
    return points.replace([np.inf, -np.inf], np.nan).dropna().reset_index(drop=True)


def _points(rows: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The candidates to draw in one panel: columns `x`, `accuracy`, `front`, and `mark` for those of the cloud."""
    points = points_of(rows, cost)
    marks = np.zeros(len(points), dtype=bool)
    marks[one_per_cell(points["x"].to_numpy(), points["accuracy"].to_numpy())] = True
    return points.assign(front=pareto_front(points["x"].to_numpy(), points["accuracy"].to_numpy()), mark=marks)


def _paint(figure: Figure, run: RunData, drawn: dict[str, pd.DataFrame]) -> None:
    """One panel for each cost."""
    dense, chosen = (score(run, network, "validation", "accuracy") for network in ("dense", "compressed"))
    wanted = targets(run)
    accent, ink, paper = COLOURS["series-1"].light, COLOURS["ink"].light, COLOURS["paper"].light
    for index, (axes, (cost, points)) in enumerate(zip(panels(figure, len(drawn)), drawn.items(), strict=True)):
        shown = points[points["mark"]]
        axes.plot(shown["x"], shown["accuracy"], "o", ms=2.6, mew=0, color=COLOURS["cloud"].light)
        front = points[points["front"]].sort_values("x")
        axes.plot(front["x"], front["accuracy"], "-", drawstyle="steps-pre", lw=1.6, color=accent)
        axes.plot(front["x"], front["accuracy"], "o", ms=3.4, mew=0, color=accent)
        if cost in wanted:
            axes.axvline(wanted[cost], color=COLOURS["muted"].light, lw=1, ls=(0, (4, 3)), zorder=0)
        if dense is not None:
            axes.plot([0], [dense], "o", ms=8, mew=1.8, mec=ink, mfc=paper, clip_on=False, zorder=5)
        reached = compression(run, cost)
        if chosen is not None and reached is not None:
            orange = COLOURS["series-2"].light
            axes.plot([reached], [chosen], "D", ms=8, mew=1.2, mec=paper, mfc=orange, zorder=6)
        dress(axes, title=cost_label(cost), x_label="compression")
        percent_axis(axes, points)
        axes.set_xlim(left=min(-0.02, axes.get_xlim()[0]))
        if index % PANELS_A_ROW == 0:
            axes.set_ylabel("accuracy")


def _legend(run: RunData) -> tuple[LegendEntry, ...]:
    """The keys of what is drawn."""
    entries = [LegendEntry("scored candidate", "dot", "cloud"), LegendEntry("Pareto front", "line", "series-1")]
    if score(run, "dense", "validation", "accuracy") is not None:
        entries.append(LegendEntry("dense network", "ring", "ink"))
    if score(run, "compressed", "validation", "accuracy") is not None:
        entries.append(LegendEntry("chosen network", "diamond", "series-2"))
    if targets(run):
        entries.append(LegendEntry("compression asked for", "dashed", "muted"))
    return tuple(entries)


def _caption(run: RunData, drawn: dict[str, pd.DataFrame]) -> str:
    """What the picture leaves out, in words."""
    parts = []
    total, fewest = max(map(len, drawn.values())), min(int(points["mark"].sum()) for points in drawn.values())
    if fewest < total:
        parts.append(
            f"Of {total:,} scored candidates, those that lie closer together than a mark is wide are drawn once "
            f"(at least {fewest:,} marks in each panel); the front is complete."
        )
    if score(run, "dense", "validation", "accuracy") is None:
        parts.append("The dense network's score is recorded when the run ends, so it is not marked.")
    return " ".join(parts)


def _alt(run: RunData, drawn: dict[str, pd.DataFrame], chosen: float | None) -> str:
    """The picture in words."""
    amounts = ", ".join(f"{int(points['front'].sum()):,} for {cost_label(cost)}" for cost, points in drawn.items())
    text = f"{run.name}: scatter of validation accuracy against compression, one panel per cost. "
    text += f"Of {max(map(len, drawn.values())):,} scored candidates these are on the Pareto front: {amounts}."
    return text + (f" The chosen network has {metric('accuracy', chosen)}." if chosen is not None else "")


def _table(rows: pd.DataFrame, costs: Sequence[str]) -> Table:
    """The candidates, those on a front first, each group from the most accurate to the least."""
    values = {cost: rows.get(f"compression_{cost}", pd.Series(np.nan, rows.index)) for cost in costs}
    fronts = {
        cost: pareto_front(column.to_numpy(float), rows["accuracy"].to_numpy()) for cost, column in values.items()
    }
    on = np.any(list(fronts.values()), axis=0)
    order = np.lexsort((-rows["accuracy"].to_numpy(), ~on))
    lines: list[tuple[str, ...]] = []
    for position in order[:_MOST_ROWS]:
        row = rows.iloc[position]
        of = ", ".join(cost_label(cost).lower() for cost in costs if fronts[cost][position])
        shares = tuple(percent(values[cost].iloc[position]) for cost in costs)
        level = "" if np.isnan(row["level"]) else f"{row['level']:.0f}"
        lines.append((metric("accuracy", row["accuracy"]), *shares, row["search"], level, of))
    columns = [Column("Accuracy"), *(Column(cost_label(cost)) for cost in costs)]
    columns += [Column("Search", False), Column("Level"), Column("On the front of", False)]
    first = "the candidates on a front, then the most accurate:"
    return table("Scored candidates", columns, lines, limit=_MOST_ROWS, order=first, total=len(rows), folded=True)
