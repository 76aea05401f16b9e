"""Section: whole networks' latency, predicted against measured, with the calibration line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report.quantities import ABSENT, decimal, difference, milliseconds, number, percent, plural
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, LegendEntry, Picture, Section, Table, table
from orchestrator.report.svg import dress, inline_svg
from orchestrator.report.theme import COLOURS

__all__ = ["predicted_latency"]

_ROLES = {"calibration": "calibration", "proposed": "proposed by the search"}


def predicted_latency(runs: Sequence[RunData]) -> Section | None:
    """A picture for every limited device; None where the result has no latency."""
    (run,) = runs
    latency = (run.result or {}).get("latency")
    if not isinstance(latency, Mapping) or not latency:
        return None
    sentences = [_sentence(str(device), entry) for device, entry in latency.items()]
    pictures = [_picture(run, str(device), entry) for device, entry in latency.items()]
    return Section("Latency, predicted and measured", tuple(sentences), tuple(pictures))


def _sentence(device: str, entry: Mapping[str, Any]) -> str:
    """What the answer takes, what it was predicted to, and how good predictions are."""
    calibration = entry.get("calibration") or {}
    measured, dense = number(entry.get("measured_ms")), number(entry.get("dense_ms"))
    text = f"On {device} the chosen network takes {milliseconds(measured)} for a batch"
    if measured is None:
        text = f"On {device} the chosen network could not be measured"
    text += f", of at most {milliseconds(entry.get('limit_ms'))}; the dense network takes {milliseconds(dense)}"
    if dense and measured:
        text += f", {decimal(dense / measured, 2)} times as long"
    text += f". It was predicted to take {milliseconds(entry.get('predicted_ms'))} before it was measured."
    error = calibration.get("error_median")
    if number(error) is not None:
        text += (
            f" Predictions are sums over layers times {decimal(calibration.get('slope'), 3)}, plus "
            f"{milliseconds(calibration.get('intercept_ms'))}, fitted to {calibration.get('networks')} networks; for a "
            f"network left out of the fit they are off by {percent(error, 1)} (median), at most "
            f"{percent(calibration.get('error_max'), 1)}."
        )
    return text


def _picture(run: RunData, device: str, entry: Mapping[str, Any]) -> Picture:
    networks = list(entry.get("networks") or [])
    alt = (
        f"{run.name}, {device}: measured latency of {plural(len(networks), 'network')} against the sum of their "
        f"layers' latencies, with the calibration line and the limit of {milliseconds(entry.get('limit_ms'))}."
    )
    svg = inline_svg(lambda figure: _paint(figure, entry, networks), width_in=9.5, height_in=3.6, alt=alt)
    legend = (
        LegendEntry("measured to calibrate", "dot", "series-1"),
        LegendEntry("proposed by the search", "diamond", "series-2"),
        LegendEntry("calibration", "line", "ink"),
        LegendEntry("limit", "dashed", "muted"),
    )
    caption = "Bars are 95% confidence intervals. What lies on the line is predicted rightly."
    return Picture(f"Whole networks on {device}", svg, caption, legend, _table(device, networks))


def _paint(figure: Figure, entry: Mapping[str, Any], networks: Sequence[Mapping[str, Any]]) -> None:
    axes: Axes = figure.subplots()
    dress(axes, title="Measured", x_label="sum of the layers' latencies", grid="both")
    for role, mark, colour in (("calibration", "o", "series-1"), ("proposed", "D", "series-2")):
        own = [one for one in networks if one.get("role") == role]
        x, y = [one["sum_ms"] for one in own], [one["measured_ms"] for one in own]
        spread = [
            [max(0.0, one["measured_ms"] - one["low_ms"]) for one in own],
            [max(0.0, one["high_ms"] - one["measured_ms"]) for one in own],
        ]
        axes.errorbar(x, y, spread, fmt="none", ecolor=COLOURS[colour].light, elinewidth=0.8)
        axes.plot(x, y, mark, ms=5, mew=0, color=COLOURS[colour].light)
    calibration = entry.get("calibration") or {}
    slope, intercept = number(calibration.get("slope")), number(calibration.get("intercept_ms"))
    sums = [one["sum_ms"] for one in networks]
    if sums and slope is not None and intercept is not None:
        ends = [min(sums), max(sums)]
        axes.plot(ends, [slope * end + intercept for end in ends], "-", lw=1.2, color=COLOURS["ink"].light, zorder=1)
    if (limit := number(entry.get("limit_ms"))) is not None:
        axes.axhline(limit, color=COLOURS["muted"].light, lw=1, ls=(0, (5, 2)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _place: milliseconds(value))


def _table(device: str, networks: Sequence[Mapping[str, Any]]) -> Table:
    lines = [
        (
            _ROLES.get(str(one.get("role")), ABSENT),
            milliseconds(one.get("sum_ms")),
            milliseconds(one.get("predicted_ms")),
            milliseconds(one.get("measured_ms")),
            milliseconds(one.get("low_ms")),
            milliseconds(one.get("high_ms")),
            difference(one.get("measured_ms"), one.get("predicted_ms")),
            difference(one.get("measured_ms"), one.get("fitted_ms")),
        )
        for one in networks
    ]
    columns = [
        Column("Why it was measured", False),
        Column("Sum of layers"),
        Column("Predicted before"),
        Column("Measured"),
    ]
    columns += [Column("Low"), Column("High"), Column("Predicted against measured"), Column("Fit against measured")]
    return table(f"Networks measured on {device}", columns, lines, folded=True)
