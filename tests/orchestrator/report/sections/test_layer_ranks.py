"""Ranks per layer: plain numbers beside the full rank, pairs by the parameters that they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.report import RunData, build_report
from orchestrator.report.layer_shares import parameter_share
from orchestrator.report.section import Picture
from orchestrator.report.sections.comparison import comparison
from orchestrator.report.sections.layer_ranks import layer_ranks


def sliced(run: RunData, rank: Any = (2, 3)) -> RunData:
    """The run as `sliced_svd` leaves it on disk: JSON lists for ranks, and ladders; the first layer dense."""
    assert run.result is not None
    space = {
        **run.space,
        "layers": [{**one, "scheme": "sliced_svd", "full_rank": 3, "useful_rank": 3} for one in run.space["layers"]],
    }
    for one in space["layers"]:
        one["ladder"] = [[1, 1], [1, 2], list(rank)]
    names = [one["name"] for one in space["layers"]]
    ranks = {name: None if index == 0 else list(rank) for index, name in enumerate(names)}
    pairs = np.empty(len(names), dtype=object)
    pairs[:] = [None, *(np.array(rank, dtype=np.int32) for _ in names[1:])]
    ranks_column = pd.Series([pairs] * len(run.evaluations), index=run.evaluations.index)
    evaluations = run.evaluations.assign(ranks=ranks_column)
    return replace(run, space=space, result={**run.result, "ranks": ranks}, evaluations=evaluations)


def picture_of(run: RunData) -> Picture:
    section = layer_ranks([run])
    assert section is not None
    (picture,) = section.blocks
    assert isinstance(picture, Picture)
    return picture


@pytest.mark.parametrize("finished", [True, False])
def test_pairs_are_shown_as_slices_times_rank(sample_run: Callable[..., RunData], finished: bool) -> None:
    run = sliced(sample_run())
    picture = picture_of(run if finished else replace(run, result=None))
    assert [column.title for column in picture.table.columns][3:6] == ["Rank", "Ranks offered", "Parameters left"]
    assert picture.table.rows[0][3:6] == ("dense", "3", "–")
    assert [row[3] for row in picture.table.rows[1:]] == ["2 × 3"] * (len(picture.table.rows) - 1)
    assert "2 × 3" in picture.svg


def test_the_bar_is_what_is_left_of_the_dense_parameters(sample_run: Callable[..., RunData]) -> None:
    picture = picture_of(sliced(sample_run()))
    layer = next(row for row in picture.table.rows if row[0] == "layer1.0.conv1")
    # j (k out + in kh kw) = 3 (2 x 16 + 16 x 9) weights of 16 x 16 x 9
    assert layer[5] == f"{3 * (2 * 16 + 16 * 9) / (16 * 16 * 9):.1%}"


@pytest.mark.parametrize(
    ("shape", "scheme", "rank", "left"),
    [
        ([32, 16, 3, 3], "channel_svd", 4, 4 * (32 + 16 * 9)),
        ([32, 16, 3, 3], "spatial_svd", 4, 4 * (32 * 3 + 16 * 3)),
        ([32, 16, 3, 3], "sliced_svd", (4, 2), 2 * (4 * 32 + 16 * 9)),
        ([10, 64], "sliced_svd", (1, 5), 5 * (10 + 64)),
        ([10, 64], "channel_svd", 5, 5 * (10 + 64)),
    ],
)
def test_a_share_is_counted_by_the_scheme(shape: list[int], scheme: str, rank: Any, left: int) -> None:
    share = parameter_share({"name": "layer", "weight_shape": shape, "scheme": scheme}, rank)
    assert share == pytest.approx(left / np.prod(shape), rel=1e-15)


@pytest.mark.parametrize(
    "described",
    [
        {"name": "layer", "weight_shape": [3, 3], "scheme": "of another package"},
        {"name": "layer", "weight_shape": [3], "scheme": "sliced_svd"},
        {"name": "layer", "scheme": "sliced_svd"},
        {"name": "layer", "weight_shape": [3, 3], "scheme": "channel_svd"},  # knows no pairs
        {"name": "layer", "weight_shape": [3, 0], "scheme": "sliced_svd"},
    ],
)
def test_a_share_that_is_not_known_is_none(described: dict[str, Any]) -> None:
    assert parameter_share(described, (1, 2)) is None


def test_plain_and_sliced_runs_stand_beside_each_other(sample_run: Callable[..., RunData]) -> None:
    runs = [sample_run("plain"), sliced(sample_run("sliced"))]
    (ranks,) = [block for block in comparison(runs).blocks if getattr(block, "caption", "") == "Ranks per layer"]
    assert not isinstance(ranks, Picture)
    assert [row[2] for row in ranks.rows] == ["dense", *["2 × 3"] * (len(ranks.rows) - 1)]
    assert "2 × 3" in build_report(runs)


def test_numbers_keep_their_full_rank(sample_run: Callable[..., RunData]) -> None:
    titles = [column.title for column in picture_of(sample_run()).table.columns]
    assert titles[3:7] == ["Rank", "Shrinks up to", "Full rank", "Share of full"]
