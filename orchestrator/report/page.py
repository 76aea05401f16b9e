"""Puts the sections onto one HTML page that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.report.quantities import plural
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Picture, Section
from orchestrator.report.sections import COMPARISONS, SECTIONS
from orchestrator.report.theme import COLOURS

__all__ = ["build_report"]

_PAGE = Environment(
    loader=PackageLoader("orchestrator.report"),
    # Every name on the page is somebody else's text: escaped, whatever the template is called.
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGE.tests["picture"] = lambda block: isinstance(block, Picture)


@dataclass(frozen=True)
class _Chapter:
    """Sections under one heading: the comparison, or one run."""

    anchor: str
    title: str
    sections: tuple[Section, ...]


def build_report(runs: Sequence[RunData], leading: Sequence[Section] = ()) -> str:
    """The report as HTML text: the comparison first where there are several runs, then each run's sections.

    It is pure: no file is read but the page's own template, and the same runs give the same text.

    Args:
        runs: at least one; a run without a result is shown as unfinished.
        leading: sections on all runs that come before the comparison; with them there may be no run.

    Raises:
        ValueError: nothing to show.
    """
    if not runs and not leading:
        raise ValueError("a report needs at least one run, got none")
    named = _with_own_names(runs)
    chapters = []
    if len(named) > 1 or leading:
        several = COMPARISONS if len(named) > 1 else ()
        built = [*leading, *(section for build in several if (section := build(named)) is not None)]
        chapters.append(_Chapter("comparison", leading[0].title if leading else "Comparison", tuple(built)))
    for index, run in enumerate(named, start=1):
        built = [section for build in SECTIONS if (section := build((run,))) is not None]
        chapters.append(_Chapter(f"run-{index}", run.name, tuple(built)))
    title = chapters[0].title if len(chapters) == 1 else f"{plural(len(named), 'run')} compared"
    return _PAGE.get_template("report.html.j2").render(title=title, chapters=chapters, colours=COLOURS)


def _with_own_names(runs: Sequence[RunData]) -> list[RunData]:
    """The runs, those called like an earlier one with a number behind the name."""
    named: list[RunData] = []
    taken: set[str] = set()
    for run in runs:
        name, number = run.name, 2
        while name in taken:
            name, number = f"{run.name} ({number})", number + 1
        taken.add(name)
        named.append(replace(run, name=name))
    return named
