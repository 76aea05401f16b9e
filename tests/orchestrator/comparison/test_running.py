"""A comparison on a real network and a real Ray: ordinary runs, and killed, refused and failed ones."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml
from filelock import FileLock

from orchestrator import api, cli, search_run
from orchestrator.comparison import running
from orchestrator.progress import Silent
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import ConfigError, RunInterruptedError
from tests.orchestrator.digits_run import digits_config

NAMES = ["alds-0.5-s0", "uniform-0.5-s0", "alds-0.6-s0", "uniform-0.6-s0", "alds-volume0.9-s0", "uniform-volume0.9-s0"]
ALIKE = ["search", "budget", "best", "compression_parameters", "validation_loss", "test_accuracy", "evaluations"]


def config(checkpoint: Path, **compare: Any) -> dict[str, Any]:
    """Two searches of a few candidates, two budgets that they meet, and one that nobody meets.

    Without early stops: how many candidates are stopped depends on who is scored first.
    """
    raw = digits_config(checkpoint)
    raw["search"] = {"method": "alds", "budget": {"parameters": 0.5}, "objective": "cross_entropy", "early_stop": False}
    searches = {"alds": {"scheme": "sliced_svd"}, "uniform": {}}
    return {**raw, "compare": {"budgets": [0.5, 0.6, {"volume": 0.9}], "searches": searches, **compare}}


class Said(Silent):
    """Remembers what was said; may press Ctrl-C at some of it."""

    def __init__(self, interrupt_at: str = "never") -> None:
        self.lines: list[str] = []
        self._interrupt_at = interrupt_at

    def say(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith(self._interrupt_at):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Comparison:
    return api.compare(config(digits_checkpoint), tmp_path_factory.mktemp("comparisons") / "finished")


@pytest.fixture
def copied(finished: api.Comparison, tmp_path: Path) -> Path:
    """A copy of the finished comparison, to do harm to."""
    return Path(shutil.copytree(finished.location, tmp_path / "copied"))


class TestAFinishedComparison:
    def test_every_run_has_a_row_and_the_infeasible_say_why(self, finished: api.Comparison) -> None:
        table = finished.table
        assert [Path(run).name for run in table["run"]] == NAMES
        assert table["status"].tolist() == ["finished"] * 4 + ["infeasible"] * 2
        assert table["reason"].str.contains("no rank vector meets 0.9").tolist() == [False] * 4 + [True] * 2
        assert table["in_window"].tolist()[:4] == [True] * 4
        assert table.loc[:3, "compression_parameters"].ge(table.loc[:3, "budget_value"]).all()

    def test_rows_are_what_the_runs_results_say(self, finished: api.Comparison) -> None:
        for row in finished.table[finished.table["status"] == "finished"].to_dict("records"):
            run = api.load_run(row["run"])
            assert run.result is not None
            assert row["validation_loss"] == run.result["scores"]["compressed"]["validation"]["loss"]
            assert row["dense_test_accuracy"] == run.result["scores"]["dense"]["test"]["accuracy"]
            assert row["macs"] == run.result["costs"]["macs"]["network"]["compressed"]
            assert (row["evaluations"], row["method"]) == (run.result["evaluations"], run.result["method"])
            assert run.config.search.scheme == row["scheme"]
            assert len(run.evaluations) == row["evaluations"]

    def test_a_run_is_what_a_search_of_its_own_finds(
        self, finished: api.Comparison, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        raw = config(digits_checkpoint)
        del raw["compare"]
        raw["search"] |= {"scheme": "sliced_svd", "budget": {"parameters": 0.6}}
        alone = api.search(raw, tmp_path / "alone").result
        together = api.load_run(Path(finished.location, "alds-0.6-s0")).result
        assert alone is not None
        assert together is not None
        for key in ("ranks", "costs", "scores", "evaluations"):
            assert alone[key] == together[key]

    def test_each_run_can_be_loaded(self, finished: api.Comparison) -> None:
        network = api.load_compressed(Path(finished.location, "alds-0.5-s0"))
        assert sum(weight.numel() for weight in network.parameters()) > 0
        assert not list(Path(finished.location).glob("*volume*")), "nothing is started for a budget that nobody meets"

    def test_files_need_nobody_to_read_them(self, finished: api.Comparison) -> None:
        written = pd.read_parquet(Path(finished.location, "comparison.parquet"))
        pd.testing.assert_frame_equal(written, finished.table)
        page = Path(finished.location, "comparison.html").read_text()
        assert all(name in page for name in NAMES[:4])
        assert Path(finished.location, NAMES[0], "report.html").exists()

    def test_ranks_of_two_numbers_are_shown_as_such(self, finished: api.Comparison) -> None:
        result = json.loads(Path(finished.location, "alds-0.5-s0", "result.json").read_text())
        k, j = next(rank for rank in result["ranks"].values() if isinstance(rank, list))
        assert f"{k} × {j}" in Path(finished.location, "comparison.html").read_text()


class TestResuming:
    def test_a_killed_comparison_goes_on_and_ends_the_same(self, finished: api.Comparison, copied: Path) -> None:
        """One run without its result, one cut short before it was a run, one never started."""
        (copied / NAMES[0] / "result.json").unlink()
        (copied / NAMES[1] / "config.yaml").unlink()
        shutil.rmtree(copied / NAMES[3])
        (copied / "comparison.parquet").unlink()
        untouched = (copied / NAMES[2] / "result.json").stat().st_mtime_ns
        said = Said()
        resumed = api.resume_comparison(copied, said)
        groups = [line for line in said.lines if line.startswith("group")]
        assert groups == [
            f"group 1 of 2: {NAMES[0]}",
            f"group 2 of 2: 2 searches interleaved on the same evaluators: {NAMES[1]}, {NAMES[3]}",
        ]
        pd.testing.assert_frame_equal(resumed.table[ALIKE], finished.table[ALIKE])
        assert (copied / NAMES[2] / "result.json").stat().st_mtime_ns == untouched

    def test_ctrl_c_leaves_a_comparison_that_resumes(
        self, ray_cluster: Cluster, finished: api.Comparison, digits_checkpoint: Path, tmp_path: Path
    ) -> None:
        raw, place = config(digits_checkpoint, budgets=[0.5]), tmp_path / "interrupted"
        with pytest.raises(RunInterruptedError, match=f"go on with `rankray resume {place}`"):
            api.compare(raw, place, observer=Said(interrupt_at="group 2"))
        half = pd.read_parquet(place / "comparison.parquet")
        assert half["status"].tolist() == ["finished", "unfinished"]
        whole = api.resume_comparison(place).table
        pd.testing.assert_frame_equal(whole[ALIKE], finished.table.loc[:1, ALIKE], check_dtype=False)

    def test_a_finished_one_is_read_without_ray(self, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(running, "connect", lambda _: pytest.fail("Ray was started"))
        assert api.resume_comparison(copied).table["status"].tolist()[:4] == ["finished"] * 4

    def test_another_model_is_refused(self, copied: Path) -> None:
        (copied / NAMES[1] / "result.json").unlink()
        written = yaml.safe_load((copied / "compare.yaml").read_text())
        written["model"]["checkpoint"] = None
        (copied / "compare.yaml").write_text(yaml.safe_dump(written))
        with pytest.raises(ConfigError, match=r"^model\.checkpoint: the model is not what this run began with"):
            api.resume_comparison(copied)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rankray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line: exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rankray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


class TestTheCommandLine:
    def test_resume_knows_a_comparison(self, rankray: Command, copied: Path) -> None:
        status, out, err = rankray("resume", copied)
        assert (status, err) == (0, "")
        assert "alds (infeasible)" in out
        assert f"comparison: {copied} (comparison.html, comparison.parquet)" in out

    def test_a_run_that_fails_is_a_row_and_the_others_go_on(
        self, ray_cluster: Cluster, rankray: Command, copied: Path
    ) -> None:
        for name in NAMES[:2]:
            (copied / name / "result.json").unlink()
        with FileLock(copied / NAMES[0] / ".lock"):
            status, out, err = rankray("resume", copied)
        assert status == 1
        assert err == f"rankray: 1 of 6 runs failed; `rankray resume {copied}` tries them again\n"
        assert "another process works on this run" in out
        table = pd.read_parquet(copied / "comparison.parquet")
        assert table["status"].tolist()[:4] == ["failed", "finished", "finished", "finished"]
        assert rankray("resume", copied)[0] == 0

    def test_two_processes_do_not_work_on_one_comparison(self, rankray: Command, copied: Path) -> None:
        with FileLock(copied / ".lock"):
            status, out, err = rankray("resume", copied)
        assert (status, out) == (1, "")
        assert "another process works on this run" in err

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("compare.budgets=[]", "compare.budgets: "),
            ("compare.searches.alds.beam=1", "compare.searches.alds.beam: unknown key"),
            ("compare.searches.alds.scheme=slicd_svd", "compare.searches.alds.scheme: unknown scheme 'slicd_svd'; did"),
            ("compare.budgets=[{colour: 0.5}]", "compare.budgets.0.colour: unknown cost"),
            ("compare.searches.uniform.include=[nowhere]", "compare.searches.uniform.include"),
            ("model.checkpoint=nowhere.pt", "model.checkpoint: "),
            ("compare=3", "{config}: compare: is missing"),
        ],
    )
    def test_a_mistake_ends_it_before_anything_starts(
        self,
        rankray: Command,
        digits_checkpoint: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        override: str,
        message: str,
    ) -> None:
        for place in (ray, running, search_run):
            monkeypatch.setattr(place, "init" if place is ray else "connect", lambda *_: pytest.fail("Ray was started"))
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config(digits_checkpoint)))
        status, out, err = rankray("compare", path, "--run-dir", tmp_path / "run", "--set", override)
        assert (status, out) == (2, "")
        assert err.startswith(f"rankray: {message.format(config=path)}"), err
        assert err.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_a_place_that_is_taken_is_refused(self, rankray: Command, digits_checkpoint: Path, copied: Path) -> None:
        path = copied.parent / "config.yaml"
        path.write_text(yaml.safe_dump(config(digits_checkpoint)))
        status, _, err = rankray("compare", path, "--run-dir", copied)
        assert status == 2
        assert "is not empty" in err
