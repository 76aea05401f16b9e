"""A comparison's page: accuracy over compression with a line per search, the table behind it, then every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from orchestrator.comparison.outcomes import costs_of, judged_by
from orchestrator.report import RunData, build_report
from orchestrator.report.quantities import cost_label, count, decimal, duration, metric, percent, plural
from orchestrator.report.section import Block, Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.sections.cost_fronts import panels, percent_axis
from orchestrator.report.svg import dress, inline_svg
from orchestrator.report.theme import COLOURS, LINES, SYMBOLS, line, series_colour, symbol

__all__ = ["comparison_page", "searches_section"]

_SPLITS = ("validation", "test")


def comparison_page(rows: pd.DataFrame, runs: Sequence[RunData]) -> str:
    """The page as HTML text.

    Args:
        rows: as `outcomes.table_of` makes them.
        runs: those that were started.
    """
    return build_report(runs, (searches_section(rows),))


def searches_section(rows: pd.DataFrame) -> Section:
    """All searches under all budgets."""
    finished = rows[rows["status"] == "finished"]
    searches = list(dict.fromkeys(rows["search"]))
    by = judged_by(rows.attrs["objective"]).replace("_", " ")
    sentences = [
        f"{plural(len(searches), 'search').replace('searchs', 'searches')} under "
        f"{plural(rows['budget'].nunique(), 'budget')}: {len(finished)} of {plural(len(rows), 'run')} finished. "
        f"“Best” is told within each budget and seed by {by}; test data choose nothing."
    ]
    blocks: list[Block] = []
    if not finished.empty:
        blocks.append(_picture(finished, searches))
    blocks.append(_table(rows))
    reasons = rows[rows["reason"] != ""]
    if not reasons.empty:
        lines = [tuple(row[name] for name in ("search", "budget", "status", "reason")) for row in _records(reasons)]
        columns = [Column(head, False) for head in ("Search", "Budget", "Status", "Reason")]
        blocks.append(table("Runs that did not finish", columns, lines))
    return Section("All searches", tuple(sentences), tuple(blocks))


def curves_of(finished: pd.DataFrame, search: str, cost: str, split: str) -> pd.DataFrame:
    """A search's line: `x`, compression in the cost, and `accuracy`, by rising `x`; means over seeds.

    Args:
        finished: rows with a result.
        cost: the first limit of the budgets that count.
        split: `validation` or `test`.
    """
    own = finished[(finished["search"] == search) & (finished["budget_cost"] == cost)]
    points = pd.DataFrame(
        {"budget": own["budget"], "x": own[f"compression_{cost}"], "accuracy": own[f"{split}_accuracy"]}
    ).dropna()
    return points.groupby("budget", sort=False)[["x", "accuracy"]].mean().sort_values("x").reset_index(drop=True)


def _picture(finished: pd.DataFrame, searches: Sequence[str]) -> Picture:
    costs = [cost for cost in costs_of(finished) if (finished["budget_cost"] == cost).any()]
    splits = [split for split in _SPLITS if finished[f"{split}_accuracy"].notna().any()]
    places = [(cost, split) for cost in costs for split in splits]
    curves = {(one, *place): curves_of(finished, one, *place) for one in searches for place in places}
    drawn = [one for one in searches if any(len(curves[(one, *place)]) for place in places)]
    svg: Markup = inline_svg(
        lambda figure: _paint(figure, finished, searches, places, curves),
        width_in=9.5,
        height_in=3.7 * -(-len(places) // 3),
        alt=f"Accuracy over compression, a line for each of {plural(len(drawn), 'search')}: {', '.join(drawn)}. "
        "The table below has the points.",
    )
    legend = [
        LegendEntry(one, f"{line(index)} {symbol(index)}", series_colour(index))
        for index, one in enumerate(searches)
        if one in drawn
    ]
    legend.append(LegendEntry("dense network", "ring", "ink"))
    caption = "Each mark is the network that a search chose under one budget" + (
        ", mean over seeds." if finished["seed"].nunique() > 1 else "."
    )
    lines = [
        (one, cost_label(cost), split, percent(point["x"]), metric("accuracy", point["accuracy"]))
        for (one, cost, split), curve in curves.items()
        for point in _records(curve)
    ]
    columns = [*(Column(head, False) for head in ("Search", "Cost", "Data")), Column("Compression"), Column("Accuracy")]
    points = table("Points of the lines", columns, lines, limit=500, folded=True)
    return Picture("Accuracy over compression", svg, caption, tuple(legend), points)


def _paint(
    figure: Figure,
    finished: pd.DataFrame,
    searches: Sequence[str],
    places: Sequence[tuple[str, str]],
    curves: dict[tuple[str, str, str], pd.DataFrame],
) -> None:
    """A panel for each cost and split."""
    paper, ink = COLOURS["paper"].light, COLOURS["ink"].light
    for number, (axes, (cost, split)) in enumerate(zip(panels(figure, len(places)), places, strict=True)):
        for index, one in enumerate(searches):
            curve, colour = curves[one, cost, split], COLOURS[series_colour(index)].light
            axes.plot(curve["x"], curve["accuracy"], lw=1.6, color=colour, linestyle=LINES[line(index)])
            axes.plot(curve["x"], curve["accuracy"], SYMBOLS[symbol(index)], ms=7, mew=1, mec=paper, mfc=colour)
        dense = finished[f"dense_{split}_accuracy"].mean()
        axes.plot([0.0], [dense], "o", ms=8, mew=1.8, mec=ink, mfc=paper, clip_on=False, zorder=4)
        dress(axes, title=f"{cost_label(cost)}, {split} data", x_label="compression")
        percent_axis(axes, pd.concat([curves[one, cost, split] for one in searches]))
        if number == 0:
            axes.set_ylabel("accuracy")


def _table(rows: pd.DataFrame) -> Table:
    """Every run as a row."""
    costs, lines = costs_of(rows), []
    for row in _records(rows):
        status = row["status"]
        if status == "finished":
            status = "best" if row["best"] else "met" if row["in_window"] else "missed"
        shares = [percent(row[f"compression_{cost}"]) for cost in costs]
        scores = [metric("accuracy", row["validation_accuracy"]), decimal(row["validation_loss"])]
        effort = [count(row["evaluations"]), duration(row["seconds"])]
        test = metric("accuracy", row["test_accuracy"])
        lines.append((row["budget"], row["search"], str(row["seed"]), status, *shares, *scores, test, *effort))
    columns = [Column("Budget", False), Column("Search", False), Column("Seed"), Column("Status", False)]
    columns += [Column(f"{cost_label(cost)} saved") for cost in costs]
    heads = ("Validation accuracy", "Validation loss", "Test accuracy", "Candidates", "Time")
    columns += [Column(head) for head in heads]
    return table("Every run", columns, lines, limit=500)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
