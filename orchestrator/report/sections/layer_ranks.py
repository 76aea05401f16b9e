"""Section: the rank of every layer beside its full and its break-even rank, or beside the parameters that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator.report.layer_shares import parameter_share
from orchestrator.report.quantities import ABSENT, count, percent, plural, rank_text
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.svg import dress, inline_svg, label
from orchestrator.report.task import chosen_ranks
from orchestrator.report.theme import COLOURS
from search_spaces.rank_space import Rank

__all__ = ["layer_ranks"]

_MOST_BARS = 80
_ROW_IN = 0.215
_NUMBERS_AT = (1.075, 1.155, 1.225)
"""Right edges of the columns of numbers, as shares of the bars' width."""

_Layer = Mapping[str, Any]
_Ranks = Mapping[str, Rank | None]


@dataclass(frozen=True)
class _Scale:
    """What the bars are relative to.

    Attributes:
        by_parameters: to the dense layer's parameters, for ranks of several numbers: they do not lie on one line from
            1 to full. Otherwise to the full rank.
        whole: what a whole bar is; `axis` its share.
        heads: of the numbers beside the bars.
    """

    by_parameters: bool
    whole: str
    axis: str
    heads: tuple[str, ...]

    @classmethod
    def of(cls, layers: Sequence[_Layer]) -> _Scale:
        """The one that fits the ranks of a space."""
        if any(isinstance(rank, list) for layer in layers for rank in layer.get("ladder", [])):
            return cls(True, "the dense layer", "share of the dense layer's parameters", ("rank", "offered", "left"))
        return cls(False, "full rank", "share of full rank", ("rank", "shrinks\nup to", "full"))

    def share(self, layer: _Layer, rank: Rank | None) -> float | None:
        """How long a layer's bar is; None where that is not known."""
        if rank is None:
            return None
        if self.by_parameters:
            return parameter_share(layer, rank)
        return rank / max(1, int(layer["full_rank"])) if isinstance(rank, int) else None

    def numbers(self, layer: _Layer, ranks: _Ranks | None) -> tuple[str, str, str]:
        """The numbers beside a bar."""
        rank = None if ranks is None else ranks.get(layer["name"])
        text, useful = ABSENT if ranks is None else rank_text(rank), int(layer["useful_rank"])
        if self.by_parameters:
            return text, count(useful), percent(self.share(layer, rank), 1)
        return text, count(useful) if useful else "never", count(layer["full_rank"])


def layer_ranks(runs: Sequence[RunData]) -> Section | None:
    """A bar for every layer; None for a space without layers."""
    (run,) = runs
    layers = list(run.space.get("layers", []))
    if not layers:
        return None
    ranks, scale = chosen_ranks(run), _Scale.of(layers)
    drawn = _largest(layers)
    svg = inline_svg(
        lambda figure: _paint(figure, drawn, ranks, scale),
        width_in=9.5,
        height_in=0.9 + _ROW_IN * len(drawn),
        alt=_alt(run, layers, ranks, scale),
    )
    caption = (
        ""
        if len(drawn) == len(layers)
        else (f"Drawn: the {len(drawn)} layers with the most parameters of {len(layers)}; the table has more.")
    )
    picture = Picture("Ranks", svg, caption, _legend(run, ranks, scale), _table(layers, ranks, scale))
    return Section("Ranks per layer", (_sentence(run, layers, ranks, scale),), (picture,))


def _legend(run: RunData, ranks: _Ranks | None, scale: _Scale) -> tuple[LegendEntry, ...]:
    """The keys of what is drawn."""
    legend = [LegendEntry(scale.whole, "bar", "bar")]
    if not scale.by_parameters:
        legend.append(LegendEntry("largest rank that shrinks the layer", "tick", "ink"))
    if ranks is not None:
        chosen = "rank chosen" if run.result is not None else "rank so far"
        legend.insert(0, LegendEntry(chosen, "bar", "series-1"))
        legend.append(LegendEntry("left dense", "square", "muted"))
    return tuple(legend)


def _largest(layers: list[_Layer]) -> list[_Layer]:
    """The layers to draw, in the model's order."""
    size = [int((layer.get("dense") or {}).get("parameters", 0)) for layer in layers]
    kept = sorted(sorted(range(len(layers)), key=lambda index: -size[index])[:_MOST_BARS])
    return [layers[index] for index in kept]


def _sentence(run: RunData, layers: list[_Layer], ranks: _Ranks | None, scale: _Scale) -> str:
    """How many layers were factorised."""
    text = "Bars are relative to each layer's full rank, so that small and large layers compare. "
    if scale.by_parameters:
        text = (
            "A rank k × j is k slices of the input channels with rank j in each. "
            "Bars are what the factorised layer has of the dense layer's parameters. "
        )
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


def _paint(figure: Figure, layers: list[_Layer], ranks: _Ranks | None, scale: _Scale) -> None:
    """Bars from top to bottom in the model's order, the numbers in columns at the right."""
    axes: Axes = figure.subplots()
    places = np.arange(len(layers))
    axes.barh(places, np.ones(len(layers)), height=0.62, color=COLOURS["bar"].light)
    for place, layer in zip(places, layers, strict=True):
        rank = None if ranks is None else ranks.get(layer["name"])
        if (share := scale.share(layer, rank)) is not None:
            axes.barh(place, share, height=0.62, color=COLOURS["series-1"].light)
        elif ranks is not None and rank is None:
            axes.plot([0.012], [place], "s", ms=4, color=COLOURS["muted"].light)
    if not scale.by_parameters:
        _break_even_ticks(axes, places, layers)
    _columns_of_numbers(axes, layers, ranks, scale)
    dress(axes, title="", x_label=scale.axis, grid="")
    axes.set_yticks(places, [label(str(layer["name"])) for layer in layers], color=COLOURS["ink"].light)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.spines["bottom"].set_visible(False)


def _break_even_ticks(axes: Axes, places: np.ndarray[Any, Any], layers: list[_Layer]) -> None:
    """A tick at the largest rank that shrinks a layer."""
    full = np.array([max(1, int(layer["full_rank"])) for layer in layers])
    useful = np.array([int(layer["useful_rank"]) for layer in layers])
    shrinkable = useful > 0
    ticks = (useful / full)[shrinkable]
    axes.vlines(ticks, places[shrinkable] - 0.42, places[shrinkable] + 0.42, color=COLOURS["ink"].light, lw=1.4)


def _columns_of_numbers(axes: Axes, layers: list[_Layer], ranks: _Ranks | None, scale: _Scale) -> None:
    """Numbers as text beside the bars."""
    across = axes.get_yaxis_transform()
    for x, head in zip(_NUMBERS_AT, scale.heads, strict=True):
        style = {"ha": "right", "va": "bottom", "color": COLOURS["muted"].light}
        axes.text(x, -0.75, head, transform=across, fontsize=8.5, linespacing=1.0, **style)  # type: ignore[arg-type]
    for place, layer in enumerate(layers):
        for x, text in zip(_NUMBERS_AT, scale.numbers(layer, ranks), strict=True):
            axes.text(x, place, text, transform=across, ha="right", va="center", fontsize=9)


def _alt(run: RunData, layers: list[_Layer], ranks: _Ranks | None, scale: _Scale) -> str:
    """The picture in words."""
    if ranks is None:
        return (
            f"{run.name}: bar chart of {plural(len(layers), 'layer')} relative to {scale.whole}; no ranks chosen yet."
        )
    factorised = sum(ranks.get(layer["name"]) is not None for layer in layers)
    mark = "" if scale.by_parameters else ", with the break-even rank marked"
    return (
        f"{run.name}: bar chart of the rank of {plural(len(layers), 'layer')} relative to {scale.whole}{mark}; "
        f"{factorised} factorised, {len(layers) - factorised} dense. The table below has all."
    )


def _table(layers: list[_Layer], ranks: _Ranks | None, scale: _Scale) -> Table:
    """Every layer with its ranks and its dense costs."""
    lines = []
    for layer in layers:
        rank, dense = (None if ranks is None else ranks.get(layer["name"])), layer.get("dense") or {}
        shape = " × ".join(str(side) for side in layer.get("weight_shape", []))
        numbers = list(scale.numbers(layer, ranks))
        if not scale.by_parameters:
            numbers.append(percent(scale.share(layer, rank), 1))
        costs = tuple(count(dense.get(cost)) for cost in ("parameters", "macs", "volume"))
        lines.append((str(layer["name"]), str(layer.get("scheme", "")), shape, *numbers, *costs))
    heads = (
        ("Ranks offered", "Parameters left") if scale.by_parameters else ("Shrinks up to", "Full rank", "Share of full")
    )
    columns = [Column("Layer", False), Column("Scheme", False), Column("Weight")]
    columns += [Column(head) for head in ("Rank", *heads)]
    columns += [Column(head) for head in ("Parameters, dense", "MACs, dense", "Volume, dense")]
    return table("Ranks", columns, lines, limit=500, folded=True)
