"""Pictures inside the page."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from orchestrator.report.svg import dress, inline_svg, label
from orchestrator.report.theme import COLOURS


def paint(figure: Figure) -> None:
    """Two lines, one mark, and names that try something."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o-", color=COLOURS["series-1"].light)
    axes.set_yticks([0, 1], ["<script>alert(1)</script>", label("a$b$c\x00")])
    dress(axes, title="_title", x_label="x")


def svg_of(alt: str = "a line") -> str:
    """The picture as text."""
    return inline_svg(paint, width_in=4, height_in=3, alt=alt)


def test_it_is_the_same_each_time() -> None:
    assert svg_of() == svg_of()


def test_names_stay_text() -> None:
    texts = [element.text for element in ElementTree.fromstring(svg_of()).iter("text")]
    assert "<script>alert(1)</script>" in texts
    assert "a$b$c\N{REPLACEMENT CHARACTER}" in texts
    assert "<script" not in svg_of()


def test_colours_are_the_pages() -> None:
    assert "var(--series-1)" in svg_of()
    assert COLOURS["series-1"].light not in svg_of()


def test_it_says_what_it_shows_to_those_who_do_not_see_it() -> None:
    root = ElementTree.fromstring(svg_of('a "line" <here>'))
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'a "line" <here>'


def test_it_refers_to_nothing_outside_and_styles_nothing_outside() -> None:
    assert "http" not in svg_of()
    assert "<style" not in svg_of()


def test_two_pictures_share_no_identifier() -> None:
    first, second = (
        {element.get("id") for element in ElementTree.fromstring(svg_of(alt)).iter()} - {None} for alt in ("one", "two")
    )
    assert first
    assert not first & second


def test_every_reference_within_it_is_met() -> None:
    root = ElementTree.fromstring(svg_of())
    known = {f"#{element.get('id')}" for element in root.iter()}
    references = {element.get("href") for element in root.iter("use")}
    clips = {f"#{element.get('clip-path', '').removeprefix('url(#').removesuffix(')')}" for element in root.iter()}
    assert references <= known
    assert clips - {"#"} <= known


@pytest.mark.parametrize(("name", "shown"), [("conv1", "conv1"), ("a" * 20 + "b" * 20, "a" * 5 + "…" + "b" * 4)])
def test_a_long_name_loses_its_middle(name: str, shown: str) -> None:
    assert label(name, most=10) == shown
