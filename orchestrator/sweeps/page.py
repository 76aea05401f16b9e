"""A sweep's page: accuracy over compression, a mark per trial and the Pareto front, the table behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from orchestrator.report import build_report
from orchestrator.report.quantities import cost_label, count, duration, metric, milliseconds, percent, plural
from orchestrator.report.section import Block, Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.sections.cost_fronts import PANELS_A_ROW, panels, percent_axis
from orchestrator.report.svg import dress, inline_svg
from orchestrator.report.theme import COLOURS, SYMBOLS, series_colour, symbol
from orchestrator.sweeps.outcomes import devices_of_table
from orchestrator.sweeps.trials import LATENCY
from search_spaces.costs import COST_NAMES
from search_spaces.latency import latency_name

__all__ = ["sweep_page", "trials_section"]


def sweep_page(rows: pd.DataFrame) -> str:
    """The page as HTML text.

    Args:
        rows: as `outcomes.table_of` makes them.
    """
    return build_report((), (trials_section(rows),))


def trials_section(rows: pd.DataFrame) -> Section:
    """All trials, the front first."""
    finished = rows[rows["status"] == "finished"]
    amounts = [f"{len(finished)} of {plural(len(rows), 'trial')} finished"]
    amounts += [f"{number} {one}" for one in ("stopped", "failed") if (number := int((rows["status"] == one).sum()))]
    text = (
        f"{', '.join(amounts)}. A trial is on the Pareto front if no other finished one compresses at least as much "
        "(up to what its budget asks) and is at least as accurate on the held-out samples, and better in one of them; "
        "test data choose nothing."
    )
    if devices := devices_of_table(rows.columns):
        text += (
            f" Networks were timed as a whole on {', '.join(devices)} after training; what a trial saves of a latency "
            "is the share of the dense network's measured time."
        )
    blocks: list[Block] = []
    if not finished.empty:
        blocks += [_picture(finished), _table("Pareto front", finished[finished["pareto"]])]
    blocks.append(_table("Every trial", rows, folded=not finished.empty))
    done = rows["status"] == "finished"
    for title, where in (("Trials that did not finish", ~done), ("Networks that could not be timed", done)):
        lines = [(row["trial"], row["status"], row["reason"]) for row in _records(rows[where & (rows["reason"] != "")])]
        if lines:
            blocks.append(table(title, [Column(one, False) for one in ("Trial", "Status", "Why")], lines))
    return Section("Sweep", (text,), tuple(blocks))


def _picture(finished: pd.DataFrame) -> Picture:
    costs = [cost for cost in _costs(finished) if (finished["budget_cost"] == cost).any()]
    methods = list(dict.fromkeys(finished["method"]))
    svg = inline_svg(
        lambda figure: _paint(figure, finished, costs, methods),
        width_in=9.5,
        height_in=3.9 * -(-len(costs) // PANELS_A_ROW),
        alt=f"Accuracy over compression of {plural(len(finished), 'trial')}, a mark for each of the methods "
        f"{', '.join(methods)}. The table below has the points.",
    )
    legend = [LegendEntry(one, symbol(index), series_colour(index)) for index, one in enumerate(methods)]
    legend += [LegendEntry("Pareto front", "line", "muted"), LegendEntry("dense network", "ring", "ink")]
    caption = "Each mark is a trial's network after its last epoch, judged on the held-out samples."
    lines = [
        (row["trial"], cost_label(cost), percent(row[f"compression_{cost}"]), metric("accuracy", row["accuracy"]))
        for cost in costs
        for row in _records(finished[finished["budget_cost"] == cost])
    ]
    columns = [Column("Trial", False), Column("Cost", False), Column("Compression"), Column("Accuracy")]
    points = table("Points", columns, lines, limit=500, folded=True)
    return Picture("Accuracy over compression", svg, caption, tuple(legend), points)


def _costs(rows: pd.DataFrame) -> list[str]:
    """All costs that rows have a compression in."""
    return [*COST_NAMES, *(latency_name(device) for device in devices_of_table(rows.columns))]


def _paint(figure: Figure, finished: pd.DataFrame, costs: Sequence[str], methods: Sequence[str]) -> None:
    """A panel for each budgeted cost."""
    paper, ink = COLOURS["paper"].light, COLOURS["ink"].light
    for number, (axes, cost) in enumerate(zip(panels(figure, len(costs)), costs, strict=True)):
        own = finished[finished["budget_cost"] == cost].rename(columns={f"compression_{cost}": "x"})
        front = own[own["pareto"]].sort_values("x")
        axes.plot(front["x"], front["accuracy"], drawstyle="steps-pre", lw=1.4, color=COLOURS["muted"].light)
        for index, method in enumerate(methods):
            marks, colour = own[own["method"] == method], COLOURS[series_colour(index)].light
            axes.plot(marks["x"], marks["accuracy"], SYMBOLS[symbol(index)], ms=7, mew=1, mec=paper, mfc=colour)
        dense = own["dense_accuracy"].mean()
        axes.plot([0.0], [dense], "o", ms=8, mew=1.8, mec=ink, mfc=paper, clip_on=False, zorder=4)
        saved = "compression" if cost in COST_NAMES else "share of the dense network's time saved"
        dress(axes, title=cost_label(cost), x_label=saved)
        percent_axis(axes, own)
        if number % PANELS_A_ROW == 0:
            axes.set_ylabel("accuracy")


def _table(title: str, rows: pd.DataFrame, folded: bool = False) -> Table:
    lines, costs, devices = [], _costs(rows), devices_of_table(rows.columns)
    times = [name for device in devices for name in (f"{LATENCY}{device}", f"predicted_ms@{device}")]
    for row in _records(rows):
        scores = [metric("accuracy", row[name]) for name in ("accuracy_before", "accuracy", "test_accuracy")]
        shares = [percent(row[f"compression_{cost}"]) for cost in costs]
        shares += [milliseconds(row[name]) for name in times]
        effort = [count(row["epochs"]), duration(row["seconds"])]
        status = "on the front" if row["pareto"] else row["status"]
        lines.append((row["trial"], row["budget"], status, *shares, *scores, *effort))
    columns = [Column("Trial", False), Column("Budget", False), Column("Status", False)]
    columns += [Column(f"{cost_label(cost)} saved") for cost in costs]
    columns += [Column(head) for device in devices for head in (f"Measured on {device}", f"Predicted for {device}")]
    heads = ("Before fine-tuning", "Accuracy", "Test accuracy", "Epochs", "Time")
    return table(title, [*columns, *(Column(head) for head in heads)], lines, limit=500, folded=folded)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
