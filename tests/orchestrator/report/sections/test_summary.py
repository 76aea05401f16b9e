"""The summary says what the result says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from orchestrator.report import RunData
from orchestrator.report.evaluations import evaluations_of, scored
from orchestrator.report.quantities import count, metric, percent
from orchestrator.report.section import Section, Table
from orchestrator.report.sections.summary import summary


def result_of(run: RunData) -> Any:
    """The result of a finished run."""
    assert run.result is not None
    return run.result


def rows_of(section: Section, caption: str) -> dict[str, tuple[str, ...]]:
    """A table's rows by their first cell."""
    (found,) = [block for block in section.blocks if isinstance(block, Table) and block.caption == caption]
    return {row[0]: row[1:] for row in found.rows}


def test_the_table_has_the_results_numbers(sample_run: Callable[..., RunData]) -> None:
    run = sample_run()
    result, rows = result_of(run), rows_of(summary([run]), "Before and after")
    for split in ("validation", "test"):
        for name in ("accuracy", "loss"):
            expected = tuple(metric(name, result["scores"][one][split][name]) for one in ("dense", "compressed"))
            assert rows[f"{name.capitalize()}, {split}"][:2] == expected
    for cost, title in (
        ("parameters", "Parameters"),
        ("macs", "Multiply-accumulates"),
        ("volume", "Activation volume"),
    ):
        entry = result["costs"][cost]
        expected = (count(entry["dense"]), count(entry["compressed"]))
        assert rows[f"{title}, layers searched"][:2] == expected
        network = entry["network"]
        assert rows[f"{title}, whole network"][:2] == (count(network["dense"]), count(network["compressed"]))


def test_the_sentences_and_key_facts_have_them_too(sample_run: Callable[..., RunData]) -> None:
    run = sample_run()
    result, section = result_of(run), summary([run])
    text = " ".join(section.sentences)
    assert f"{percent(result['costs']['parameters']['compression'])} fewer parameters" in text
    assert metric("accuracy", result["scores"]["compressed"]["test"]["accuracy"]) in text
    assert f"{result['evaluations']:,} candidates were evaluated in 2 min 3 s" in text
    assert section.facts[0].value == percent(result["costs"]["parameters"]["compression"])
    assert section.warning == ""


def test_a_missed_window_is_said_first_with_both_numbers(sample_run: Callable[..., RunData]) -> None:
    run = sample_run(in_window=False)
    reached = percent(result_of(run)["costs"]["parameters"]["compression"])
    assert summary([run]).warning == (
        f"The window was missed: 49.50% to 50.00% fewer parameters were asked for, {reached} were reached."
    )


def test_candidates_without_a_score_are_counted_by_reason(sample_run: Callable[..., RunData]) -> None:
    run = sample_run()
    rows = rows_of(summary([run]), "Candidates without a score")
    failed = evaluations_of(run).query("status != 'ok'")
    assert set(rows) == {"nan", "error"}
    assert sum(int(row[1]) for row in rows.values()) == len(failed) > 0
    assert rows["nan"] == ("outputs are not finite", str((failed["status"] == "nan").sum()))


def test_an_unfinished_run_says_so_and_how_far_it_is(sample_run: Callable[..., RunData]) -> None:
    run = sample_run(finished=False)
    section = summary([run])
    assert section.warning.startswith("This run is unfinished")
    assert percent(scored(run)["compression"].max()) in section.warning
    assert not section.facts


def test_a_run_without_evaluations_says_so(sample_run: Callable[..., RunData]) -> None:
    run = replace(sample_run(finished=False), evaluations=pd.DataFrame())
    assert "has no scored candidate yet" in summary([run]).warning


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"macs": 0.4}, "40.00% fewer multiply-accumulates"),
        ({"parameters": 100_000}, "at most 100,000 parameters"),
        ([{"parameters": 0.5}, {"volume": 0.1}], "50.00% fewer parameters and 10.00% less activation volume"),
        ({"latency_ms": {"orin": 4.0}}, "latency ms of at most 4.0 on orin"),
    ],
)
def test_every_kind_of_budget_is_put_in_words(sample_run: Callable[..., RunData], budget: Any, words: str) -> None:
    run = sample_run()
    other = replace(run, result={**result_of(run), "budget": budget})
    assert f"The budget was {words}" in summary([other]).sentences[0]
