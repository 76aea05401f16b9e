"""Section: what a device takes for a layer at each rank, with the device's rank step and the ranks that are offered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report.quantities import milliseconds, plural, rank_text
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.svg import dress, inline_svg, label
from orchestrator.report.theme import COLOURS
from search_spaces.latency import Timing
from search_spaces.rank_space import Rank, rank_from

__all__ = ["Staircase", "latency_staircases", "staircases_of"]

_PANELS_A_ROW, _MOST_PANELS = 3, 12


@dataclass(frozen=True)
class Staircase:
    """One layer shape on one device.

    Attributes:
        layers: names of the layers that have it, in the model's order.
        timings: by rank; `None` is the dense layer.
        offered: ranks that the search could choose.
    """

    layers: tuple[str, ...]
    timings: Mapping[Rank | None, Timing]
    offered: tuple[Rank, ...]

    @property
    def title(self) -> str:
        """The first layer's name, and how many share its shape."""
        more = len(self.layers) - 1
        return label(self.layers[0], 28) + (f" and {more} more" if more else "")


def latency_staircases(runs: Sequence[RunData]) -> Section | None:
    """A picture for every device that was timed; None where none was."""
    (run,) = runs
    latency = run.space.get("latency")
    if not isinstance(latency, Mapping) or not latency:
        return None
    pictures = [
        _picture(run, str(device), staircases_of(run, str(device)), _step(latency[device])) for device in latency
    ]
    text = (
        "Each point is the median of one layer by itself, for one batch; bars are 95% confidence intervals. A search "
        "may choose only ranks for which no higher rank is as fast, those just below a jump, and the dense layer."
    )
    return Section("Latency at each rank", (text,), tuple(pictures))


def staircases_of(run: RunData, device: str) -> list[Staircase]:
    """The distinct layer shapes on a device, the slowest dense layer first."""
    measured = run.space["latency"][device]["layers"]
    found: dict[str, Staircase] = {}
    for layer in run.space.get("layers", []):
        name = str(layer["name"])
        rows = measured.get(name, [])
        timings = {rank_from(rank): Timing(float(ms), float(low), float(high)) for rank, ms, low, high in rows}
        offered = tuple(rank for one in layer.get("ladder", []) if (rank := rank_from(one)) is not None)
        key = f"{layer.get('weight_shape')} {sorted(timings.items(), key=str)}"
        layers = (*found[key].layers, name) if key in found else (name,)
        found[key] = Staircase(layers, timings, offered)
    return sorted(found.values(), key=lambda one: -_dense_ms(one))


def _dense_ms(one: Staircase) -> float:
    return one.timings[None].ms if None in one.timings else 0.0


def _step(described: Any) -> int:
    return int(described.get("step", 1))


def _picture(run: RunData, device: str, staircases: Sequence[Staircase], step: int) -> Picture:
    drawn = [one for one in staircases if len(one.timings) > 1][:_MOST_PANELS]
    rows = max(1, math.ceil(len(drawn) / _PANELS_A_ROW))
    alt = (
        f"{run.name}, {device}: latency against rank for {plural(len(drawn), 'layer shape')}, "
        f"each a line with the dense layer's latency beside it; the device's rank step is {step}."
    )
    svg = inline_svg(lambda figure: _paint(figure, drawn, step), width_in=9.5, height_in=2.7 * rows, alt=alt)
    has_step = f"its rank step is {step}: the thin lines are its multiples" if step > 1 else "no rank step was seen"
    caption = f"On {device} {has_step}."
    if len(drawn) < len(staircases):
        caption += f" Drawn: {len(drawn)} of {len(staircases)} layer shapes, the slowest first; the table has all."
    legend = [
        LegendEntry("measured", "line dot", "series-1"),
        LegendEntry("offered to the search", "diamond", "series-2"),
        LegendEntry("dense layer", "dashed", "muted"),
    ]
    return Picture(f"Latency on {device}", svg, caption, tuple(legend), _table(device, staircases))


def _paint(figure: Figure, drawn: Sequence[Staircase], step: int) -> None:
    across = min(_PANELS_A_ROW, max(1, len(drawn)))
    grid = figure.subplots(max(1, math.ceil(len(drawn) / across)), across, squeeze=False)
    for surplus in list(grid.flat)[len(drawn) :]:
        surplus.set_visible(False)
    for axes, one in zip(grid.flat, drawn, strict=False):
        _panel(axes, one, step)


def _panel(axes: Axes, one: Staircase, step: int) -> None:
    known = sorted((_channels(rank), timing, rank) for rank, timing in one.timings.items() if rank is not None)
    at, ms = [x for x, *_ in known], [timing.ms for _, timing, _ in known]
    blue, orange = COLOURS["series-1"].light, COLOURS["series-2"].light
    dress(axes, title=one.title, x_label="rank", grid="y")
    top = max(at)
    if step > 1 and top // step <= 40:
        for multiple in range(step, top + 1, step):
            axes.axvline(multiple, color=COLOURS["rule"].light, lw=0.6, zorder=0)
    low = [max(0.0, timing.ms - timing.low_ms) for _, timing, _ in known]
    high = [max(0.0, timing.high_ms - timing.ms) for _, timing, _ in known]
    axes.errorbar(at, ms, [low, high], fmt="none", ecolor=blue, elinewidth=0.8)
    axes.plot(at, ms, "o-", ms=3, lw=1, color=blue)
    chosen = [(x, timing.ms) for x, timing, rank in known if rank in one.offered]
    axes.plot([x for x, _ in chosen], [y for _, y in chosen], "D", ms=5.5, mew=0, color=orange, zorder=4)
    if None in one.timings:
        axes.axhline(one.timings[None].ms, color=COLOURS["muted"].light, lw=1, ls=(0, (5, 2)))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _place: milliseconds(value))


def _channels(rank: Rank) -> int:
    """Channels between the stages: what sliced ranks are drawn at."""
    return rank if isinstance(rank, int) else math.prod(rank)


def _table(device: str, staircases: Sequence[Staircase]) -> Table:
    lines = [
        (
            ", ".join(one.layers),
            rank_text(rank),
            milliseconds(timing.ms),
            milliseconds(timing.low_ms),
            milliseconds(timing.high_ms),
            "yes" if rank is None or rank in one.offered else "",
        )
        for one in staircases
        for rank, timing in sorted(
            one.timings.items(), key=lambda item: (item[0] is not None, str(type(item[0])), item[0])
        )
    ]
    columns = [Column("Layers", False), Column("Rank"), Column("Median"), Column("Low"), Column("High")]
    return table(f"Layers on {device}", [*columns, Column("Offered", False)], lines, folded=True)
