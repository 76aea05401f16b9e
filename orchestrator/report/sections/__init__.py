"""The report's sections. A new one is a file here and a line below; nothing else needs to know of it."""

from __future__ import annotations

from orchestrator.report.section import SectionBuilder
from orchestrator.report.sections.comparison import comparison
from orchestrator.report.sections.cost_fronts import cost_fronts
from orchestrator.report.sections.latency_staircases import latency_staircases
from orchestrator.report.sections.layer_ranks import layer_ranks
from orchestrator.report.sections.layers_left_out import layers_left_out
from orchestrator.report.sections.predicted_latency import predicted_latency
from orchestrator.report.sections.provenance import provenance
from orchestrator.report.sections.search_course import search_course
from orchestrator.report.sections.summary import summary
from orchestrator.report.sections.throughput import throughput

__all__ = ["COMPARISONS", "SECTIONS"]

COMPARISONS: tuple[SectionBuilder, ...] = (comparison,)
"""Called once with all runs, where there are several."""

SECTIONS: tuple[SectionBuilder, ...] = (
    summary,
    cost_fronts,
    layer_ranks,
    predicted_latency,
    latency_staircases,
    search_course,
    throughput,
    layers_left_out,
    provenance,
)
"""Called for every run, with that run alone; in the page's order."""
