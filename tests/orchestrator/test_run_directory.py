"""The run directory: what lies in it, when a folder is a run, and that one process at a time works on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.loading import check_config
from orchestrator.preparation import Prepared, prepare
from orchestrator.run_directory import RunDirectory
from orchestrator.storage import Storage
from search_spaces.errors import ConfigError, RunStoppedError


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """The demo's network, untrained, on a few digits."""
    raw: dict[str, Any] = {
        "model": {"build": "workers.models:digits_cnn"},
        "data": {"train": {"dataset": "workers.digits:digits"}, "validation_size": 8},
        "search": {"method": "mbs", "budget": {"parameters": 0.5}, "exclude": ["conv1"]},
    }
    return prepare(check_config(raw, "config"))


@pytest.fixture
def location(tmp_path: Path) -> str:
    return str(tmp_path / "runs" / "r")


class TestCreating:
    def test_writes_the_config_as_it_was_checked(self, location: str, prepared: Prepared) -> None:
        run = RunDirectory.create(location, prepared)
        assert run.config() == prepared.config
        assert RunDirectory.open(location).config() == prepared.config

    def test_writes_the_space(self, location: str, prepared: Prepared) -> None:
        RunDirectory.create(location, prepared)
        space = json.loads(Path(location, "space.json").read_text())
        assert [layer["name"] for layer in space["layers"]] == ["conv2", "conv3", "conv4", "conv5", "linear"]
        # conv3 is 64 x (32 9), at 4 x 4 positions: r (288 + 64) < 64 288 up to r = 52.
        assert space["layers"][1] == {
            "name": "conv3",
            "aliases": [],
            "kind": "conv",
            "scheme": "channel_svd",
            "weight_shape": [64, 32, 3, 3],
            "full_rank": 64,
            "useful_rank": 52,
            "dense": {"parameters": 18432, "macs": 294912, "volume": 1024},
        }
        assert space["left_out"] == [{"name": "conv1", "reason": "search.exclude has 'conv1'"}]
        assert space["fingerprints"] == prepared.fingerprints

    def test_a_run_that_was_cut_short_here_is_none(
        self, location: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Storage.write

        def crashes(storage: Storage, name: str, data: bytes) -> None:
            if name == "config.yaml":
                raise KeyboardInterrupt
            write(storage, name, data)

        monkeypatch.setattr(Storage, "write", crashes)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory.create(location, prepared)
        with pytest.raises(ConfigError, match=r"is no run: it has no config\.yaml"):
            RunDirectory.open(location)

    def test_where_a_run_is_changes_nothing(self, location: str, prepared: Prepared) -> None:
        RunDirectory.create(location, prepared)
        before = {path: path.read_bytes() for path in Path(location).iterdir()}
        with pytest.raises(ConfigError, match="exists and is not empty"):
            RunDirectory.create(location, prepared)
        assert {path: path.read_bytes() for path in Path(location).iterdir()} == before


class TestOpening:
    def test_what_is_not_there_leaves_no_folder_behind(self, location: str) -> None:
        with pytest.raises(
            ConfigError, match=r"^run: .* does not exist; a run directory is what `rankray search` writes$"
        ):
            RunDirectory.open(location)
        assert not Path(location).exists()

    def test_an_unfinished_run_has_no_result_and_no_state(self, location: str, prepared: Prepared) -> None:
        RunDirectory.create(location, prepared)
        run = RunDirectory.open(location)
        assert (run.result(), run.state()) == (None, None)

    def test_state_and_result_come_back_as_written(self, location: str, prepared: Prepared) -> None:
        run = RunDirectory.create(location, prepared)
        run.write_state({"search": {"s3-k5": {"step": 3}}, "seconds": 1.5})
        run.write_state({"search": {"s3-k5": {"step": 1}}, "seconds": 2.5})
        run.write_result({"method": "mbs", "scores": None})
        again = RunDirectory.open(location)
        assert again.state() == {"search": {"s3-k5": {"step": 1}}, "seconds": 2.5}
        assert again.result() == {"method": "mbs", "scores": None}

    def test_everything_can_be_read_without_rankray(self, location: str, prepared: Prepared) -> None:
        run = RunDirectory.create(location, prepared)
        run.write_result({"ranks": {"conv2": None}})
        assert json.loads(Path(location, "result.json").read_text()) == {"ranks": {"conv2": None}}
        assert yaml.safe_load(Path(location, "config.yaml").read_text())["search"]["budget"] == {"parameters": 0.5}

    def test_the_whole_run_for_its_report(self, location: str, prepared: Prepared) -> None:
        data = RunDirectory.create(location + "/", prepared).data()
        assert (data.name, data.result, data.state, len(data.evaluations)) == ("r", None, None, 0)
        assert data.config["model"]["build"] == "workers.models:digits_cnn"
        assert data.space["layers"][0]["name"] == "conv2"

    def test_a_run_at_a_uri_is_named_without_its_options(self, prepared: Prepared) -> None:
        assert RunDirectory.create("mock://runs/r20?local_mtime=1", prepared).data().name == "r20"


class TestLocking:
    def test_a_second_process_is_told(self, location: str, prepared: Prepared) -> None:
        RunDirectory.create(location, prepared)
        with RunDirectory.open(location).locked():
            program = (
                "from orchestrator.run_directory import RunDirectory\n"
                "from search_spaces.errors import RunStoppedError\n"
                "try:\n"
                f"    with RunDirectory.open({location!r}).locked(): print('in')\n"
                "except RunStoppedError as error: print(error)\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
                cwd=Path(__file__).parents[2],
            )
        assert done.stdout == f"{location}: another process works on this run; wait for it or end it\n"

    def test_a_lock_is_free_again_after_use(self, location: str, prepared: Prepared) -> None:
        run = RunDirectory.create(location, prepared)
        for _ in range(2):
            with run.locked():
                pass

    def test_a_lock_that_a_killed_process_left_is_in_nobodys_way(self, location: str, prepared: Prepared) -> None:
        run = RunDirectory.create(location, prepared)
        Path(location, ".lock").touch()
        with run.locked():
            pass

    def test_a_place_that_cannot_be_locked_says_so(self, location: str, prepared: Prepared) -> None:
        run = RunDirectory.create(location, prepared)
        Path(location, ".lock").mkdir()
        with pytest.raises(RunStoppedError, match=r"\.lock: cannot be locked: .*Is a directory"), run.locked():
            pass
