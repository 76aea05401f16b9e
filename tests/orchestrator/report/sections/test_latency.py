"""Latency in the report: staircases from `space.json`, predictions from `result.json`, each with its table."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.report import RunData, build_report
from orchestrator.report.section import Picture
from orchestrator.report.sections.latency_staircases import latency_staircases, staircases_of
from orchestrator.report.sections.layer_ranks import layer_ranks
from orchestrator.report.sections.predicted_latency import predicted_latency
from orchestrator.report.task import budget_text, targets

NETWORK = {"low_ms": 4.9, "high_ms": 10.1, "fitted_ms": 5.05, "ranks": [None, 16]}


def entry(**other: Any) -> dict[str, Any]:
    """What `LatencyModel.record` gives."""
    calibration = {"slope": 1.25, "intercept_ms": 0.4, "networks": 3, "error_median": 0.012, "error_max": 0.05}
    return {
        "limit_ms": 5.2,
        "predicted_ms": 5.3,
        "measured_ms": 5.0,
        "low_ms": 4.9,
        "high_ms": 5.1,
        "dense_ms": 10.0,
        "calibration": {**calibration, "spearman": 0.99},
        "networks": [
            {"role": "calibration", "sum_ms": 8.0, "predicted_ms": None, "measured_ms": 10.0, **NETWORK},
            {"role": "calibration", "sum_ms": 2.0, "predicted_ms": None, "measured_ms": 3.0, **NETWORK},
            {"role": "proposed", "sum_ms": 3.7, "predicted_ms": 5.3, "measured_ms": 5.0, **NETWORK},
        ],
        **other,
    }


@pytest.fixture
def run(sample_run: Callable[..., RunData]) -> RunData:
    """A run with a device `orin`: all layers of a shape have one staircase of width 16."""
    plain = sample_run()
    space, result = copy.deepcopy(dict(plain.space)), copy.deepcopy(dict(plain.result or {}))
    timed = {}
    for layer in space["layers"]:
        side = layer["weight_shape"][0]
        ranks = [rank for rank in (8, 16, 24, 32) if rank <= layer["useful_rank"]]
        layer["ladder"] = [rank for rank in ranks if rank % 16 == 0]
        timed[layer["name"]] = [[None, side / 10, side / 10.1, side / 9.9]] + [
            [rank, 0.5 + -(-rank // 16), 0.45 + -(-rank // 16), 0.55 + -(-rank // 16)] for rank in ranks
        ]
    space["latency"] = {"orin": {"step": 16, "layers": timed}}
    result["latency"] = {"orin": entry()}
    result["budget"] = {"latency@orin": "5.2 ms", "parameters": 0.5}
    # As files give them back.
    return replace(plain, space=json.loads(json.dumps(space)), result=json.loads(json.dumps(result)))


def pictures(section: Any) -> list[Picture]:
    assert section is not None
    return [block for block in section.blocks if isinstance(block, Picture)]


def test_a_run_without_latency_has_no_such_sections(sample_run: Callable[..., RunData]) -> None:
    assert latency_staircases([sample_run()]) is None
    assert predicted_latency([sample_run()]) is None


def test_layers_of_one_shape_share_a_staircase(run: RunData) -> None:
    found = staircases_of(run, "orin")
    layers = [layer["name"] for layer in run.space["layers"]]
    assert sorted(name for one in found for name in one.layers) == sorted(layers)
    assert len(found) < len(layers)
    assert [one.timings[None].ms for one in found] == sorted((one.timings[None].ms for one in found), reverse=True)
    assert all(set(one.offered) <= set(one.timings) for one in found)


def test_a_picture_of_staircases_has_its_step_and_every_number_in_its_table(run: RunData) -> None:
    (picture,) = pictures(latency_staircases([run]))
    assert "rank step is 16" in picture.caption
    assert "orin" in picture.svg
    found = staircases_of(run, "orin")
    assert len(picture.table.rows) == sum(len(one.timings) for one in found)
    offered = {row[1] for row in picture.table.rows if row[-1] == "yes"}
    assert offered == {"dense", "16", "32"}


def test_predictions_stand_beside_measurements(run: RunData) -> None:
    section = predicted_latency([run])
    (picture,) = pictures(section)
    text = section.sentences[0].replace("\N{NO-BREAK SPACE}", " ")
    assert "takes 5 ms for a batch, of at most 5.2 ms; the dense network takes 10 ms, 2.00 times as long" in text
    assert "predicted to take 5.3 ms" in text
    assert "off by 1.2% (median), at most 5.0%" in text
    rows = [tuple(cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row) for row in picture.table.rows]
    assert rows[-1] == ("proposed by the search", "3.7 ms", "5.3 ms", "5 ms", "4.9 ms", "10.1 ms", "+6.00%", "+1.00%")
    assert rows[0][2] == "–"


def test_what_could_not_be_measured_is_said(run: RunData) -> None:
    latency = {"orin": entry(measured_ms=None, low_ms=None, high_ms=None)}
    broken = replace(run, result={**(run.result or {}), "latency": latency})
    section = predicted_latency([broken])
    assert "could not be measured" in section.sentences[0]
    assert len(pictures(section)) == 1


def test_the_page_has_both_and_an_unfinished_run_its_staircases(run: RunData) -> None:
    page = build_report([run])
    assert "Latency at each rank" in page
    assert "Latency, predicted and measured" in page
    unfinished = build_report([replace(run, result=None)])
    assert "Latency at each rank" in unfinished
    assert "Latency, predicted and measured" not in unfinished


def test_ladders_of_numbers_are_drawn_as_numbers(run: RunData) -> None:
    (picture,) = pictures(layer_ranks([run]))
    assert any("full" in column.title.lower() for column in picture.table.columns)


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ({"latency@orin": "10 ms"}, "a latency of at most 10 ms on orin"),
        ({"latency@orin": 0.5}, "50.00% less latency on orin"),
        ({"throughput@cpu0": "500/s"}, "a throughput of at least 500/s on cpu0"),
        ({"throughput@cpu0": "2x"}, "2 times the dense network's throughput on cpu0"),
    ],
)
def test_limits_on_devices_read_as_sentences(run: RunData, budget: dict[str, Any], text: str) -> None:
    limited = replace(run, result={**(run.result or {}), "budget": budget})
    assert budget_text(limited) == text
    assert targets(limited) == {}
