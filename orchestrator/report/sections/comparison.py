"""Section: several runs side by side, in one table and on one Pareto picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from orchestrator.report.evaluations import cost_names, objective_of, scored
from orchestrator.report.pareto import pareto_front
from orchestrator.report.quantities import (
    ABSENT,
    cost_label,
    count,
    duration,
    metric,
    metric_difference,
    percent,
    rank_text,
)
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.sections.cost_fronts import PANELS_A_ROW, panels, percent_axis, points_of
from orchestrator.report.svg import dress, inline_svg
from orchestrator.report.task import budget_text, chosen_ranks, compression, method_name, scheme_text, score
from orchestrator.report.theme import COLOURS, LINES, SYMBOLS, line, series_colour, symbol

__all__ = ["comparison"]


def comparison(runs: Sequence[RunData]) -> Section:
    """All runs: what each was asked, reached and took, and the fronts over each other."""
    costs = list(dict.fromkeys(cost for run in runs for cost in cost_names(run)))
    blocks: list[Table | Picture] = [_reached(runs, costs), _asked(runs)]
    fronts = {(index, cost): _front(run, cost) for index, run in enumerate(runs) for cost in costs}
    if any(len(front) for front in fronts.values()) or any(_chosen(run) is not None for run in runs):
        blocks.append(_picture(runs, costs, fronts))
    if (ranks := _ranks(runs)) is not None:
        blocks.append(ranks)
    return Section("Comparison", _sentences(runs), tuple(blocks), _caution(runs))


def _sentences(runs: Sequence[RunData]) -> tuple[str, ...]:
    """How many runs there are, and which are unfinished."""
    unfinished = [run.name for run in runs if run.result is None]
    missed = [run.name for run in runs if run.result is not None and not run.result.get("in_window")]
    sentences = [f"{len(runs)} runs are compared."]
    if unfinished:
        sentences.append(f"Unfinished, shown as far as they are: {', '.join(unfinished)}.")
    if missed:
        sentences.append(f"Ended outside the window they were asked for: {', '.join(missed)}.")
    return (" ".join(sentences),)


def _caution(runs: Sequence[RunData]) -> str:
    """Why the runs' numbers do not compare, where they do not."""
    reasons = []
    for key, what in (("data", "data"), ("model", "models")):
        if len({str((run.space.get("fingerprints") or {}).get(key)) for run in runs}) > 1:
            reasons.append(f"different {what}")
    if len({str(run.config.get("data")) for run in runs}) > 1 and "different data" not in reasons:
        reasons.append("different data settings")
    if not reasons:
        return ""
    return f"These runs were scored on {' and '.join(reasons)}: their accuracies and costs do not compare directly."


def _chosen(run: RunData) -> float | None:
    """Validation accuracy of the chosen network."""
    return score(run, "compressed", "validation", "accuracy")


def _dense(run: RunData) -> float | None:
    """Validation accuracy of the dense network."""
    return score(run, "dense", "validation", "accuracy")


def _front(run: RunData, cost: str) -> pd.DataFrame:
    """The run's Pareto front in one cost: `x`, `accuracy`, each place once, by rising `x`."""
    points = points_of(scored(run), cost)
    front = points[pareto_front(points["x"].to_numpy(), points["accuracy"].to_numpy())]
    return front.drop_duplicates().sort_values("x")


def _asked(runs: Sequence[RunData]) -> Table:
    """What each run was asked, and what it took."""
    lines = []
    for run in runs:
        result = run.result or {}
        effort = (count(result.get("evaluations", len(run.evaluations))), duration(result.get("seconds")))
        task = (method_name(run), scheme_text(run), objective_of(run).name, budget_text(run))
        lines.append((run.name, *task, *effort))
    columns = [Column(head, False) for head in ("Run", "Method", "Scheme", "Objective", "Budget")]
    return table("What was asked", [*columns, Column("Candidates"), Column("Time")], lines)


def _reached(runs: Sequence[RunData], costs: Sequence[str]) -> Table:
    """What each run reached."""
    lines = []
    for run in runs:
        window = "unfinished" if run.result is None else "met" if run.result.get("in_window") else "missed"
        numbers = [percent(compression(run, cost)) for cost in costs]
        for split in ("validation", "test"):
            before, after = (score(run, one, split, "accuracy") for one in ("dense", "compressed"))
            numbers += [metric("accuracy", after), metric_difference("accuracy", before, after)]
        lines.append((run.name, window, *numbers))
    columns = [Column("Run", False), Column("Budget", False)]
    columns += [Column(f"{cost_label(cost)} saved") for cost in costs]
    columns += [Column(head) for split in ("Validation", "Test") for head in (f"{split} accuracy", "from dense")]
    return table("What was reached", columns, lines)


def _picture(runs: Sequence[RunData], costs: Sequence[str], fronts: dict[tuple[int, str], pd.DataFrame]) -> Picture:
    """The fronts over each other, the chosen networks marked."""
    svg = inline_svg(
        lambda figure: _paint(figure, runs, costs, fronts),
        width_in=9.5,
        height_in=3.5 * math.ceil(len(costs) / PANELS_A_ROW),
        alt=f"Pareto fronts of validation accuracy against compression of {len(runs)} runs: "
        f"{', '.join(run.name for run in runs)}. The table below has the points.",
    )
    legend = [
        LegendEntry(run.name, f"{line(index)} {symbol(index)}" if _chosen(run) is not None else line(index), colour)
        for index, run in enumerate(runs)
        for colour in [series_colour(index)]
    ]
    if any(_dense(run) is not None for run in runs):
        legend.append(LegendEntry("dense network", "ring", "ink"))
    caption = (
        "Lines: the Pareto front of each run's scored candidates. Large marks: the networks chosen. "
        "Accuracy is that on the validation data."
    )
    lines = [
        (runs[index].name, cost_label(cost), percent(point["x"]), metric("accuracy", point["accuracy"]))
        for (index, cost), front in fronts.items()
        for point in front.to_dict("records")
    ]
    columns = (Column("Run", False), Column("Cost", False), Column("Compression"), Column("Accuracy"))
    points = table("Points of the Pareto fronts", columns, lines, limit=300, folded=True)
    return Picture("Pareto fronts", svg, caption, tuple(legend), points)


def _paint(
    figure: Figure, runs: Sequence[RunData], costs: Sequence[str], fronts: dict[tuple[int, str], pd.DataFrame]
) -> None:
    """One panel for each cost."""
    paper = COLOURS["paper"].light
    for place, (axes, cost) in enumerate(zip(panels(figure, len(costs)), costs, strict=True)):
        for index, run in enumerate(runs):
            front, colour = fronts[index, cost], COLOURS[series_colour(index)].light
            dash = LINES[line(index)]
            axes.plot(front["x"], front["accuracy"], drawstyle="steps-pre", lw=1.6, color=colour, linestyle=dash)
            if len(front) == 1:
                axes.plot(front["x"], front["accuracy"], "o", ms=4, mew=0, color=colour)
            reached, accuracy = compression(run, cost), _chosen(run)
            if reached is not None and accuracy is not None:
                marker = SYMBOLS[symbol(index)]
                axes.plot([reached], [accuracy], marker, ms=9, mew=1.2, mec=paper, mfc=colour, zorder=5)
        for dense in sorted({dense for run in runs if (dense := _dense(run)) is not None}):
            axes.plot([0.0], [dense], "o", ms=8, mew=1.8, mec=COLOURS["ink"].light, mfc=paper, clip_on=False, zorder=4)
        dress(axes, title=cost_label(cost), x_label="compression")
        percent_axis(axes, pd.concat([fronts[index, cost] for index in range(len(runs))]))
        if place % PANELS_A_ROW == 0:
            axes.set_ylabel("accuracy")


def _ranks(runs: Sequence[RunData]) -> Table | None:
    """The chosen ranks of every layer, a column per finished run; None unless two of them share a layer."""
    finished = [run for run in runs if run.result is not None]
    layers = list(dict.fromkeys(str(layer["name"]) for run in finished for layer in run.space.get("layers", [])))
    chosen = [chosen_ranks(run) or {} for run in finished]
    if not any(sum(name in ranks for ranks in chosen) > 1 for name in layers):
        return None
    lines = []
    for name in layers:
        lines.append((name, *(rank_text(one[name]) if name in one else ABSENT for one in chosen)))
    columns = [Column("Layer", False), *(Column(run.name) for run in finished)]
    return table("Ranks per layer", columns, lines, limit=500, folded=True)
