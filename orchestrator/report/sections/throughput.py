"""Section: who scored how many candidates, and how long one takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestrator.report.evaluations import evaluations_of
from orchestrator.report.quantities import count, decimal, duration, number, plural
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.svg import dress, inline_svg, label
from orchestrator.report.theme import COLOURS

__all__ = ["throughput"]

_MOST_BARS = 16
_ORDERS_FOR_LOG = 30
"""Slowest over fastest candidate from which the histogram's axis is logarithmic."""


def throughput(runs: Sequence[RunData]) -> Section | None:
    """Candidates per worker and seconds per candidate; None without any evaluation."""
    (run,) = runs
    rows = evaluations_of(run)
    if rows.empty:
        return None
    workers = _workers(rows)
    bars = workers.head(_MOST_BARS)
    svg = inline_svg(
        lambda figure: _paint(figure, bars, rows["seconds"]),
        width_in=9.5,
        height_in=max(2.6, 0.9 + 0.24 * len(bars)),
        alt=_alt(run, workers, rows),
    )
    caption = "" if len(bars) == len(workers) else f"Drawn: the {len(bars)} busiest workers of {len(workers)}."
    legend = [LegendEntry("candidates", "bar", "series-1"), LegendEntry("median time", "dashed", "ink")]
    if workers["failed"].any():
        legend.insert(1, LegendEntry("candidates without a score", "bar", "series-2"))
    picture = Picture("Throughput", svg, caption, tuple(legend), _table(workers))
    return Section("Throughput", (_sentence(run, rows, workers),), (picture,))


def _workers(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per worker, the busiest first: `candidates`, `failed`, `busy_s`, `median_s`, `slow_s` (95th centile)."""
    without = ~rows["status"].isin(["ok", "stopped"])  # to stop early is no failure
    groups = rows.assign(failed=without, worker=rows["worker"].replace("", "unknown")).groupby("worker")
    table_of_workers = pd.DataFrame(
        {
            "candidates": groups.size(),
            "failed": groups["failed"].sum(),
            "busy_s": groups["seconds"].sum(),
            "median_s": groups["seconds"].median(),
            "slow_s": groups["seconds"].quantile(0.95),
        }
    )
    return table_of_workers.sort_values("candidates", ascending=False, kind="stable").reset_index()


def _sentence(run: RunData, rows: pd.DataFrame, workers: pd.DataFrame) -> str:
    """The rate, over the whole search where its duration is known."""
    text = (
        f"{plural(len(workers), 'worker')} took part; a candidate took {duration(rows['seconds'].median())} (median)."
    )
    seconds = number((run.result or {}).get("seconds"))
    if seconds:
        own = int((~rows["taken_over"]).sum())
        text += f" Over the whole search that is {decimal(own / seconds, 1)} candidates a second"
        text += "." if own == len(rows) else f", without the {count(len(rows) - own)} that other searches had scored."
    return text


def _paint(figure: Figure, workers: pd.DataFrame, seconds: pd.Series[float]) -> None:
    """Bars at the left, the histogram at the right."""
    left, right = figure.subplots(1, 2)
    good = workers["candidates"] - workers["failed"]
    places = np.arange(len(workers))
    left.barh(places, good, height=0.62, color=COLOURS["series-1"].light)
    left.barh(places, workers["failed"], left=good, height=0.62, color=COLOURS["series-2"].light)
    for place, amount in zip(places, workers["candidates"], strict=True):
        left.annotate(f"{amount:,}", (amount, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    left.set_yticks(places, [label(str(name), 22) for name in workers["worker"]], color=COLOURS["ink"].light)
    # A lone worker gets a bar, not a slab.
    left.set_ylim(max(len(workers), 4) - 0.4, -0.6)
    left.set_xlim(0, workers["candidates"].max() * 1.15)
    dress(left, title="Candidates per worker", grid="")
    left.xaxis.set_visible(False)
    left.spines["bottom"].set_visible(False)
    _histogram(right, seconds[np.isfinite(seconds) & (seconds > 0)])


def _histogram(axes: Axes, seconds: pd.Series[float]) -> None:
    """How long candidates took, on a logarithmic axis where they differ much."""
    dress(axes, title="Candidates by the time they took", x_label="time for one candidate")
    if seconds.empty:
        axes.text(0.5, 0.5, "no times recorded", ha="center", va="center", transform=axes.transAxes)
        return
    low, high = float(seconds.min()), float(seconds.max())
    is_wide = high > _ORDERS_FOR_LOG * low
    bins = np.geomspace(low, high, 41) if is_wide else np.linspace(low, high if high > low else low * 1.01, 41)
    axes.hist(seconds, bins=list(bins), color=COLOURS["series-1"].light)
    axes.axvline(float(seconds.median()), color=COLOURS["ink"].light, lw=1.2, ls=(0, (4, 3)))
    if is_wide:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _alt(run: RunData, workers: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The picture in words."""
    return (
        f"{run.name}: bar chart of the candidates of {plural(len(workers), 'worker')} (most: "
        f"{count(workers['candidates'].max())}) and histogram of the time per candidate (median "
        f"{duration(rows['seconds'].median())}, longest {duration(rows['seconds'].max())})."
    )


def _table(workers: pd.DataFrame) -> Table:
    """The workers."""
    lines = [
        (
            str(row["worker"]),
            count(row["candidates"]),
            count(row["failed"]),
            duration(row["busy_s"]),
            duration(row["median_s"]),
            duration(row["slow_s"]),
        )
        for row in workers.to_dict("records")
    ]
    columns = [Column("Worker", False), Column("Candidates"), Column("Without a score"), Column("Busy")]
    columns += [Column("Median per candidate"), Column("95th percentile")]
    return table("Workers", columns, lines, order="the busiest", folded=True)
