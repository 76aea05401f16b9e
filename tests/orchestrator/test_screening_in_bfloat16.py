"""A search on a real network that is screened in bfloat16: what it reports, its fallback, and that it resumes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from orchestrator import api
from orchestrator.config.loading import check_config
from orchestrator.plan import make_plan, show_plan
from orchestrator.preparation import prepare
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import RunStoppedError
from tests.orchestrator.digits_run import digits_config
from tests.orchestrator.test_search_run import Watcher

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor does not compute in bfloat16"
)


def config(checkpoint: Path, precision: str = "bfloat16") -> dict[str, Any]:
    return digits_config(checkpoint, screening={"precision": precision})


def by_key(run: api.Run) -> pd.DataFrame:
    return run.evaluations.set_index(["ranks", "precision"]).sort_index(key=lambda index: index.map(str))


@pytest.fixture(scope="module")
def screened(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    return api.search(config(digits_checkpoint), tmp_path_factory.mktemp("runs") / "screened")


@needs_bfloat16
def test_the_answer_is_scored_in_float32_and_the_counts_are_reported(screened: api.Run) -> None:
    result, rows = screened.result, screened.evaluations
    assert result is not None
    assert result["in_window"]
    assert result["in_bfloat16"] == (rows["precision"] == "bfloat16").sum() > 0
    assert 1 <= result["evaluations"] - result["in_bfloat16"] == (rows["precision"] == "float32").sum() <= 4
    of_answer = rows[rows["ranks"] == tuple(result["ranks"].values())].set_index("precision")
    said = result["scores"]["compressed"]["validation"]["loss"]
    assert of_answer.loc["float32", "loss"] == pytest.approx(said, rel=1e-4)
    assert of_answer.loc["bfloat16", "loss"] != pytest.approx(said, rel=1e-4)
    assert of_answer.loc["bfloat16", "loss"] == pytest.approx(said, rel=0.05, abs=0.02)
    report = Path(screened.location, "report.html").read_text()
    assert f"{result['in_bfloat16']:,} of them in bfloat16" in report


@needs_bfloat16
def test_a_run_that_was_interrupted_keeps_precisions_apart(
    screened: api.Run, digits_checkpoint: Path, tmp_path: Path
) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    with pytest.raises(RunStoppedError, match="go on with `rankray resume"):
        api.search(config(digits_checkpoint), tmp_path / "run", observer=Watcher(30, interrupt))
    resumed = api.resume(tmp_path / "run")
    assert resumed.result is not None
    assert screened.result is not None
    for key in ("ranks", "evaluations", "in_bfloat16", "skipped"):
        assert resumed.result[key] == screened.result[key]
    columns = ["accuracy", "loss", "kl", "level"]
    pd.testing.assert_frame_equal(by_key(resumed)[columns], by_key(screened)[columns])


def test_where_it_cannot_be_had_float32_is_taken_and_said(
    ray_cluster: Cluster, digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    watcher = Watcher(0, lambda: None)
    fallen_back = api.search(config(digits_checkpoint), tmp_path / "run", observer=watcher)
    line = "candidates are screened in float32, not in bfloat16, because this processor does not compute in it"
    assert line in watcher.lines
    asked_for = api.search(config(digits_checkpoint, "float32"), tmp_path / "other")
    assert fallen_back.result is not None
    assert asked_for.result is not None
    for key in ("ranks", "evaluations", "in_bfloat16", "skipped"):
        assert fallen_back.result[key] == asked_for.result[key]
    assert asked_for.result["in_bfloat16"] == 0


@needs_bfloat16
def test_the_plan_says_so(digits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(check_config(config(digits_checkpoint), "test"))
    console = Console(record=True, width=200)
    show_plan(prepared, make_plan(prepared), console)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    show_plan(prepared, make_plan(prepared), console)
    shown = console.export_text()
    assert "candidates are screened in bfloat16; the best are scored again in float32" in shown
    assert "candidates are screened in float32, not in bfloat16, because this processor does not" in shown
