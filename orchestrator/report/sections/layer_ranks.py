"""Section: the rank of every layer beside its full and its break-even rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator.report.quantities import ABSENT, count, percent, plural
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.svg import dress, inline_svg, label
from orchestrator.report.task import chosen_ranks
from orchestrator.report.theme import COLOURS

__all__ = ["layer_ranks"]

_MOST_BARS = 80
_ROW_IN = 0.215
_NUMBERS_AT = (1.075, 1.155, 1.225)
"""Right edges of the columns of numbers, as shares of the bars' width."""


def layer_ranks(runs: Sequence[RunData]) -> Section | None:
    """A bar for every layer; None for a space without layers."""
    (run,) = runs
    layers = list(run.space.get("layers", []))
    if not layers:
        return None
    ranks = chosen_ranks(run)
    drawn = _largest(layers)
    svg = inline_svg(
        lambda figure: _paint(figure, drawn, ranks),
        width_in=9.5,
        height_in=0.9 + _ROW_IN * len(drawn),
        alt=_alt(run, layers, ranks),
    )
    caption = (
        ""
        if len(drawn) == len(layers)
        else (f"Drawn: the {len(drawn)} layers with the most parameters of {len(layers)}; the table has more.")
    )
    legend = [LegendEntry("full rank", "bar", "bar"), LegendEntry("largest rank that shrinks the layer", "tick", "ink")]
    if ranks is not None:
        legend.insert(0, LegendEntry("rank chosen" if run.result is not None else "rank so far", "bar", "series-1"))
        legend.append(LegendEntry("left dense", "square", "muted"))
    picture = Picture("Ranks", svg, caption, tuple(legend), _table(layers, ranks))
    return Section("Ranks per layer", (_sentence(run, layers, ranks),), (picture,))


def _largest(layers: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The layers to draw, in the model's order."""
    size = [int((layer.get("dense") or {}).get("parameters", 0)) for layer in layers]
    kept = sorted(sorted(range(len(layers)), key=lambda index: -size[index])[:_MOST_BARS])
    return [layers[index] for index in kept]


def _sentence(run: RunData, layers: list[Mapping[str, Any]], ranks: Mapping[str, Any] | None) -> str:
    """How many layers were factorised."""
    text = "Bars are relative to each layer's full rank, so that small and large layers compare. "
    if ranks is None:
        return text + "No ranks are chosen yet."
    factorised = sum(ranks.get(layer["name"]) is not None for layer in layers)
    so_far = (
        "" if run.result is not None else "So far, in the best candidate of the last level of the furthest search, "
    )
    verb = "is" if factorised == 1 else "are"
    amount = f"{plural(factorised, 'layer')} of {len(layers)} {verb} factorised, the others stay dense."
    return (
        text + so_far + (amount if factorised < len(layers) else f"all {plural(factorised, 'layer')} are factorised.")
    )


def _paint(figure: Figure, layers: list[Mapping[str, Any]], ranks: Mapping[str, Any] | None) -> None:
    """Bars from top to bottom in the model's order, the numbers in columns at the right."""
    axes: Axes = figure.subplots()
    places = np.arange(len(layers))
    full = np.array([max(1, int(layer["full_rank"])) for layer in layers])
    useful = np.array([int(layer["useful_rank"]) for layer in layers])
    axes.barh(places, np.ones(len(layers)), height=0.62, color=COLOURS["bar"].light)
    for place, layer, most in zip(places, layers, full, strict=True):
        rank = None if ranks is None else ranks.get(layer["name"])
        if isinstance(rank, int):
            axes.barh(place, rank / most, height=0.62, color=COLOURS["series-1"].light)
        elif ranks is not None:
            axes.plot([0.012], [place], "s", ms=4, color=COLOURS["muted"].light)
    shrinkable = useful > 0
    ticks = (useful / full)[shrinkable]
    axes.vlines(ticks, places[shrinkable] - 0.42, places[shrinkable] + 0.42, color=COLOURS["ink"].light, lw=1.4)
    _columns_of_numbers(axes, layers, ranks)
    dress(axes, title="", x_label="share of full rank", grid="")
    axes.set_yticks(places, [label(str(layer["name"])) for layer in layers], color=COLOURS["ink"].light)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.spines["bottom"].set_visible(False)


def _columns_of_numbers(axes: Axes, layers: list[Mapping[str, Any]], ranks: Mapping[str, Any] | None) -> None:
    """Rank, break-even rank and full rank as text beside the bars."""
    across = axes.get_yaxis_transform()
    heads = ("rank", "shrinks\nup to", "full")
    for x, head in zip(_NUMBERS_AT, heads, strict=True):
        style = {"ha": "right", "va": "bottom", "color": COLOURS["muted"].light}
        axes.text(x, -0.75, head, transform=across, fontsize=8.5, linespacing=1.0, **style)  # type: ignore[arg-type]
    for place, layer in enumerate(layers):
        rank = ABSENT if ranks is None else _rank_text(ranks.get(layer["name"]))
        useful = int(layer["useful_rank"])
        for x, text in zip(
            _NUMBERS_AT, (rank, str(useful) if useful else "never", str(layer["full_rank"])), strict=True
        ):
            axes.text(x, place, text, transform=across, ha="right", va="center", fontsize=9)


def _rank_text(rank: Any) -> str:
    """A rank as text."""
    return "dense" if rank is None else str(rank)


def _alt(run: RunData, layers: list[Mapping[str, Any]], ranks: Mapping[str, Any] | None) -> str:
    """The picture in words."""
    if ranks is None:
        return (
            f"{run.name}: bar chart of full and break-even rank of {plural(len(layers), 'layer')}; no ranks chosen yet."
        )
    factorised = sum(ranks.get(layer["name"]) is not None for layer in layers)
    return (
        f"{run.name}: bar chart of the rank of {plural(len(layers), 'layer')} relative to full rank, with the "
        f"break-even rank marked; {factorised} factorised, {len(layers) - factorised} dense. The table below has all."
    )


def _table(layers: list[Mapping[str, Any]], ranks: Mapping[str, Any] | None) -> Table:
    """Every layer with its ranks and its dense costs."""
    lines = []
    for layer in layers:
        rank, dense = (None if ranks is None else ranks.get(layer["name"])), layer.get("dense") or {}
        share = percent(rank / max(1, int(layer["full_rank"])), 1) if isinstance(rank, int) else ABSENT
        useful = int(layer["useful_rank"])
        text = ABSENT if ranks is None else _rank_text(rank)
        shape = " × ".join(str(side) for side in layer.get("weight_shape", []))
        numbers = (text, count(useful) if useful else "never", count(layer["full_rank"]), share)
        costs = tuple(count(dense.get(cost)) for cost in ("parameters", "macs", "volume"))
        lines.append((str(layer["name"]), str(layer.get("scheme", "")), shape, *numbers, *costs))
    columns = [Column("Layer", False), Column("Scheme", False), Column("Weight")]
    columns += [Column(head) for head in ("Rank", "Shrinks up to", "Full rank", "Share of full")]
    columns += [Column(head) for head in ("Parameters, dense", "MACs, dense", "Volume, dense")]
    return table("Ranks", columns, lines, limit=500, folded=True)
