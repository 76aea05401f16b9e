"""Paints a matplotlib figure as SVG that stands inside an HTML page: its colours are the page's, its text is text."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from orchestrator.report.theme import COLOURS

__all__ = ["dress", "inline_svg", "label", "ratio_tick", "space_out"]

_LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rankray",
    # A layer may be called `a$b$c`; that is no formula.
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "text.color": COLOURS["ink"].light,
    "axes.labelcolor": COLOURS["muted"].light,
    "axes.titlecolor": COLOURS["ink"].light,
    "axes.edgecolor": COLOURS["rule"].light,
    "xtick.color": COLOURS["muted"].light,
    "ytick.color": COLOURS["muted"].light,
    "grid.color": COLOURS["rule"].light,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}
_VARIABLES = {colour.light: f"var(--{name})" for name, colour in COLOURS.items()}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_POINTS_TO_PIXELS = 96 / 72


def inline_svg(paint: Callable[[Figure], None], *, width_in: float, height_in: float, alt: str) -> Markup:
    """An `<svg>` element painted by `paint`; the same figure gives the same text.

    Args:
        paint: fills an empty figure; its colours are the light ones of `theme.COLOURS`.
        alt: what the picture shows, for those who do not see it; must differ from picture to picture.
    """
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    buffer = io.BytesIO()
    with mpl.rc_context(_LOOK), warnings.catch_warnings():
        # The reader's fonts draw the text; that the fonts here lack a character of a name does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        paint(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())  # matplotlib wrote it a line ago
    _strip(root)
    _own_identifiers(root, alt)
    for element in root.iter():
        _shorten(element)
        if "style" in element.attrib:
            element.set("style", _COLOUR.sub(lambda hit: _VARIABLES.get(hit[0], hit[0]), element.get("style", "")))
    root.attrib.pop("version", None)
    for side in ("width", "height"):
        root.set(side, f"{float(root.get(side, '0').removesuffix('pt')) * _POINTS_TO_PIXELS:.0f}")
    root.set("role", "img")
    root.set("aria-label", alt)
    # ElementTree escapes every name; nothing else is in the text.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def dress(axes: Axes, *, title: str, x_label: str = "", grid: str = "y") -> None:
    """Sober axes: a title flush left in place of a turned label, hair lines across, no box."""
    axes.set_title(title, loc="left", pad=8)
    axes.set_xlabel(x_label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid)  # type: ignore[arg-type]  # matplotlib types a literal


def space_out(figure: Figure, gap_in: float = 0.12) -> None:
    """Air between panels that stand above or beside each other."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(h_pad=gap_in, w_pad=gap_in)


def ratio_tick(value: float, place: int | None) -> str:
    """A tick's label: 0.25 is `25%`, with decimals only where they tell something."""
    return f"{100 * value:.4g}%".replace("-", "−")


def label(name: str, most: int = 44) -> str:
    """A name as a picture can print it: no control characters, the middle cut out of a long one."""
    clean = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", name)
    if len(clean) <= most:
        return clean
    tail = (most - 1) // 2
    return f"{clean[: most - 1 - tail]}…{clean[-tail:]}"


def _strip(root: ElementTree.Element) -> None:
    """Removes what only a file of its own needs: namespaces, metadata, and a style sheet that would style the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in [key for key in element.attrib if key.startswith("{")]:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))


def _shorten(element: ElementTree.Element) -> None:
    """A mark's place to a hundredth of a point, and no blanks between elements: half of a scatter's size."""
    if element.tag == "use":
        for side in ("x", "y"):
            element.set(side, f"{float(element.get(side, '0')):.2f}")
    if element.tag != "text":
        element.text = (element.text or "").strip()
    element.tail = ""


def _own_identifiers(root: ElementTree.Element, alt: str) -> None:
    """Keeps the identifiers that something refers to, and makes them this picture's own."""
    prefix = "f" + hashlib.sha256(alt.encode("utf-8", "replace") + ElementTree.tostring(root)).hexdigest()[:8]
    referred = {
        hit for element in root.iter() for value in element.attrib.values() for hit in _REFERENCE.findall(value)
    }
    referred |= {element.get("href", "").removeprefix("#") for element in root.iter()}
    own = {name: f"{prefix}-{index}" for index, name in enumerate(sorted(referred))}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in referred:
            element.set("id", own[name])
        if element.get("href", "").startswith("#"):
            element.set("href", f"#{own[element.get('href', '')[1:]]}")
        for key, value in element.attrib.items():
            element.set(key, _REFERENCE.sub(lambda hit: f"url(#{own[hit[1]]})", value))
