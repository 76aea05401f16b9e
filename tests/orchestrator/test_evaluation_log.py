"""The evaluation log: what was scored is never lost, never counted twice, and readable without RankRay."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import evaluation_log
from orchestrator.evaluation_log import SCHEMA, EvaluationLog, read_evaluations
from orchestrator.storage import Storage
from search_spaces.candidates import Candidate, Score, Status
from search_spaces.errors import ConfigError, RunStoppedError
from search_spaces.rank_space import Rank, RankSpace, RankVector
from tests.orchestrator.searches.made_up import problem

SPACE: RankSpace = problem([(10, 10), (10, 10)], 0.5).space
DENSE = (None, None)
JOURNAL = "evaluations/journal.jsonl"


def open_log(folder: Path | Storage) -> EvaluationLog:
    return EvaluationLog(folder if isinstance(folder, Storage) else Storage(str(folder)), SPACE, "parameters")


def scored(ranks: RankVector, accuracy: float = 0.5, **changed: Any) -> tuple[Candidate, Score]:
    candidate = Candidate(ranks, DENSE, 0, 1, "s10-k5") if ranks != DENSE else Candidate(ranks, search="s10-k5")
    values = {"accuracy": accuracy, "loss": 1 / 3, "kl": 0.1}
    return candidate, Score(ranks, **{"values": values, "seconds": 0.25, "worker": "evaluator-1", **changed})


def failed(ranks: RankVector, status: Status, reason: str = "made up") -> tuple[Candidate, Score]:
    return scored(ranks, values={}, status=status, reason=reason)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "evaluations").iterdir())


class TestRows:
    """A Parquet file's rows, as plain pandas reads them."""

    @pytest.fixture
    def frame(self, tmp_path: Path) -> pd.DataFrame:
        log = open_log(tmp_path)
        log.record([scored(DENSE), scored((4, None), 0.75)])
        log.record([failed((4, 2), "nan", "the network's outputs are not finite")])
        log.flush()
        return pd.read_parquet(tmp_path / "evaluations" / "part-000000.parquet")

    def test_have_the_documented_columns(self, frame: pd.DataFrame) -> None:
        assert list(frame.columns) == SCHEMA.names
        documented = "search level parent changed ranks compression accuracy loss kl seconds worker status reason"
        assert {*documented.split(), "taken_over"} < set(frame.columns)

    def test_say_what_was_scored_and_where_it_came_from(self, frame: pd.DataFrame) -> None:
        row = frame.iloc[1]
        assert [None if math.isnan(rank) else int(rank) for rank in row["ranks"]] == [4, None]
        assert (row["search"], row["level"], row["changed"]) == ("s10-k5", 1, "layer0")
        # 10 x 10 at rank 4 costs 80 of 100, so 20 of 200 are gone.
        assert row["compression"] == row["compression_parameters"] == pytest.approx(0.1)
        assert row["compression_macs"] == pytest.approx(0.1)
        assert (row["accuracy"], row["loss"], row["kl"]) == (0.75, 1 / 3, 0.1)
        assert (row["seconds"], row["worker"], row["status"], row["reason"]) == (0.25, "evaluator-1", "ok", "")

    def test_say_why_a_candidate_failed(self, frame: pd.DataFrame) -> None:
        row = frame.iloc[2]
        assert (row["status"], row["reason"]) == ("nan", "the network's outputs are not finite")
        assert row[["accuracy", "loss", "kl"]].isna().all()

    def test_the_start_has_no_parent_and_no_changed_layer(self, frame: pd.DataFrame) -> None:
        assert frame.iloc[0]["parent"] is None
        assert pd.isna(frame.iloc[0]["changed"])


VALUES = st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3).map(
    lambda three: dict(zip(("accuracy", "loss", "kl"), three, strict=True))
)
RANKS = st.tuples(*(st.none() | st.integers(1, 4) for _ in range(2)))


class TestRecovering:
    """What a former process recorded comes back as it was told, from the journal and from the files alike."""

    @settings(max_examples=30)
    @given(st.dictionaries(RANKS, VALUES | st.sampled_from(["nan", "error", "lost", "timeout"]), max_size=8), st.data())
    def test_every_score_as_it_was(
        self, tmp_path_factory: pytest.TempPathFactory, told: dict[RankVector, Any], data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("run")
        log = open_log(folder)
        rows = [
            scored(ranks, values=found) if isinstance(found, dict) else failed(ranks, found)
            for ranks, found in told.items()
        ]
        for row in rows:
            log.record([row])
            if data.draw(st.booleans()):
                log.flush()
        recovered = open_log(folder).recover()
        # repr: a NaN is not equal to itself; and it tells 4 from 4.0.
        assert [repr(score) for score in recovered] == [repr(score) for _, score in rows]

    def test_of_a_process_that_was_killed(self, tmp_path: Path) -> None:
        program = (
            "import os, signal\n"
            "from tests.orchestrator.test_evaluation_log import *\n"
            f"log = open_log(Path({str(tmp_path)!r}))\n"
            "log.record([scored(DENSE)])\n"
            "log.flush()\n"
            "log.record([scored((1, None)), scored((2, None))])\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], timeout=120, check=False, cwd=Path(__file__).parents[2])
        assert done.returncode == -signal.SIGKILL
        assert [score.ranks for score in open_log(tmp_path).recover()] == [DENSE, (1, None), (2, None)]

    def test_a_line_that_the_crash_cut_short_is_scored_again(self, tmp_path: Path) -> None:
        open_log(tmp_path).record([scored(DENSE), scored((1, None))])
        journal = tmp_path / JOURNAL
        journal.write_bytes(journal.read_bytes()[:-20])
        assert [score.ranks for score in open_log(tmp_path).recover()] == [DENSE]

    @pytest.mark.parametrize("torn", [b'{"search": "s1', b"\xff\x00", b"\n\n"])
    def test_what_follows_a_torn_line_is_not_lost_with_it(self, tmp_path: Path, torn: bytes) -> None:
        open_log(tmp_path)
        Storage(str(tmp_path)).append(JOURNAL, torn)
        log = open_log(tmp_path)
        assert log.recover() == []
        log.record([scored(DENSE)])
        assert [score.ranks for score in open_log(tmp_path).recover()] == [DENSE]

    def test_killed_between_the_file_and_the_emptied_journal_counts_once(self, tmp_path: Path) -> None:
        log = open_log(tmp_path)
        log.record([scored(DENSE), scored((1, None))])
        journal = (tmp_path / JOURNAL).read_bytes()
        log.flush()
        (tmp_path / JOURNAL).write_bytes(journal)
        assert [score.ranks for score in open_log(tmp_path).recover()] == [DENSE, (1, None)]
        assert len(read_evaluations(Storage(str(tmp_path)))) == 2

    def test_the_journal_becomes_a_file_once(self, tmp_path: Path) -> None:
        open_log(tmp_path).record([scored(DENSE)])
        for _ in range(3):
            open_log(tmp_path).recover()
        assert files(tmp_path) == ["journal.jsonl", "part-000000.parquet"]
        assert (tmp_path / JOURNAL).read_bytes() == b""

    def test_of_an_empty_run_is_nothing(self, tmp_path: Path) -> None:
        assert open_log(tmp_path).recover() == []
        assert list(read_evaluations(Storage(str(tmp_path))).columns) == SCHEMA.names


class TestFiles:
    def test_no_file_is_ever_written_over(self, tmp_path: Path) -> None:
        log = open_log(tmp_path)
        for rank in (1, 2, 3):
            log.record([scored((rank, None))])
            log.flush()
        (tmp_path / "evaluations" / "part-000000.parquet").unlink()  # somebody made room
        log = open_log(tmp_path)
        log.record([scored((4, None))])
        log.flush()
        assert set(read_evaluations(Storage(str(tmp_path)))["ranks"]) == {(rank, None) for rank in (2, 3, 4)}

    def test_nothing_recorded_writes_nothing(self, tmp_path: Path) -> None:
        log = open_log(tmp_path)
        log.record([])
        log.flush()
        assert not (tmp_path / "evaluations").exists()

    @pytest.mark.parametrize("damage", [b"", b"PAR1", b"PAR1 and then nothing of use, but long enough PAR1"])
    def test_a_damaged_one_is_named_in_one_line(self, tmp_path: Path, damage: bytes) -> None:
        (tmp_path / "evaluations").mkdir()
        (tmp_path / "evaluations" / "part-000000.parquet").write_bytes(damage)
        with pytest.raises(
            ConfigError, match=r"evaluations/part-000000\.parquet: is no readable Parquet file"
        ) as caught:
            open_log(tmp_path).recover()
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
    def test_a_full_disk_stops_the_run(self, tmp_path: Path) -> None:
        (tmp_path / "evaluations").mkdir()
        (tmp_path / JOURNAL).symlink_to("/dev/full")
        with pytest.raises(RunStoppedError, match="no space left on the device"):
            open_log(tmp_path).record([scored(DENSE)])


class TestObjectStores:
    """Where nothing can be appended, every few seconds of rows become a file."""

    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> Storage:
        monkeypatch.setattr(evaluation_log, "_REMOTE_FLUSH_S", 0.0)
        return Storage("mock://run")

    def test_rows_are_kept_without_a_journal(self, store: Storage) -> None:
        log = open_log(store)
        log.record([scored(DENSE)])
        log.record([scored((1, None))])
        assert store.names("evaluations") == ["part-000000.parquet", "part-000001.parquet"]
        assert [score.ranks for score in open_log(store).recover()] == [DENSE, (1, None)]

    def test_files_come_every_few_seconds_and_when_asked_for(
        self, store: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation_log, "_REMOTE_FLUSH_S", 3600.0)
        log = open_log(store)
        log.record([scored(DENSE)])
        assert store.names("evaluations") == []
        log.flush()
        assert [score.ranks for score in open_log(store).recover()] == [DENSE]

    def test_what_cannot_be_trusted_is_set_aside(self, store: Storage) -> None:
        log = open_log(store)
        log.record([scored(DENSE)])
        log.flush()
        log.record([scored((1, None))])
        log.record([scored((2, None))])
        log.set_aside()
        assert [score.ranks for score in open_log(store).recover()] == [DENSE]
        log.record([scored((3, None))])
        assert [score.ranks for score in open_log(store).recover()] == [DENSE, (3, None)]


class TestSettingAside:
    """Scores since the last flush are out of the run, but not gone."""

    def test_they_are_scored_again(self, tmp_path: Path) -> None:
        log = open_log(tmp_path)
        log.record([scored(DENSE)])
        log.flush()
        log.record([scored((1, None))])
        log.set_aside()
        assert [score.ranks for score in open_log(tmp_path).recover()] == [DENSE]

    def test_each_time_into_a_file_of_its_own(self, tmp_path: Path) -> None:
        for rank in (1, 2):
            log = open_log(tmp_path)
            log.recover()
            log.record([scored((rank, None))])
            log.set_aside()
        aside = sorted((tmp_path / "evaluations").glob("distrusted-*.jsonl"))
        assert [json.loads(path.read_text())["ranks"] for path in aside] == [[1, None], [2, None]]

    def test_a_log_goes_on_afterwards(self, tmp_path: Path) -> None:
        log = open_log(tmp_path)
        log.record([scored((1, None))])
        log.set_aside()
        log.record([scored((2, None))])
        log.flush()
        assert [score.ranks for score in open_log(tmp_path).recover()] == [(2, None)]

    def test_nothing_to_set_aside(self, tmp_path: Path) -> None:
        open_log(tmp_path).set_aside()
        assert open_log(tmp_path).recover() == []


class TestRanksOfTwoNumbers:
    """Sliced layers: every rank is a list in every file, and a tuple when it is read."""

    SLICED = replace(
        SPACE, layers=tuple(replace(layer, full=2, useful=2, ladder=((1, 1), (2, 1))) for layer in SPACE.layers)
    )

    @pytest.fixture
    def log(self, tmp_path: Path) -> EvaluationLog:
        costs = {name: _ByProduct(name) for name in SPACE.costs}
        return EvaluationLog(Storage(str(tmp_path)), replace(self.SLICED, costs=costs), "parameters")

    def test_files_have_one_type_and_read_back_as_they_were(self, log: EvaluationLog, tmp_path: Path) -> None:
        told: list[RankVector] = [DENSE, ((2, 1), None), ((2, 1), (1, 1))]
        for ranks in told:
            log.record([scored(ranks)])
            log.flush()
        parts = sorted((tmp_path / "evaluations").glob("*.parquet"))
        assert len({str(pq.read_schema(part)) for part in parts}) == 1
        assert [list(map(_plain, row)) for part in parts for row in pd.read_parquet(part)["ranks"]] == [
            [None, None],
            [[2, 1], None],
            [[2, 1], [1, 1]],
        ]
        assert list(read_evaluations(Storage(str(tmp_path)))["ranks"]) == told

    @pytest.mark.parametrize("first", [DENSE, ((2, 1), None)])
    def test_the_journal_and_the_files_need_not_be_alike(
        self, log: EvaluationLog, tmp_path: Path, first: RankVector
    ) -> None:
        told: list[RankVector] = [first, ((1, 1), (2, 1)) if first == DENSE else DENSE]
        log.record([scored(told[0])])
        log.flush()
        log.record([scored(told[1])])
        assert list(read_evaluations(Storage(str(tmp_path)))["ranks"]) == told
        again = EvaluationLog(Storage(str(tmp_path)), self.SLICED, "parameters")
        assert [score.ranks for score in again.recover()] == told

    def test_a_dense_candidate_may_have_a_sliced_parent(self, log: EvaluationLog, tmp_path: Path) -> None:
        parent: RankVector = ((2, 1), None)
        log.record([(Candidate(DENSE, parent, 0, 1, "probe"), scored(DENSE)[1])])
        log.flush()
        assert read_evaluations(Storage(str(tmp_path)))["parent"][0] == parent


class _ByProduct:
    """A cost of ranks that are pairs."""

    elsewhere = 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    def of(self, _layer: int, rank: Rank | None) -> float:
        return 9.0 if not isinstance(rank, tuple) else float(rank[0] * rank[1])


def _plain(rank: Any) -> list[int] | None:
    return None if rank is None else list(map(int, rank))


class TestStoppedCandidates:
    def test_are_recorded_with_their_reason(self, tmp_path: Path) -> None:
        log = open_log(tmp_path)
        log.record([failed((4, 2), "stopped", "its loss is at least 0.5")])
        row = read_evaluations(Storage(str(tmp_path))).iloc[0]
        assert (row["status"], row["reason"]) == ("stopped", "its loss is at least 0.5")
        (score,) = open_log(tmp_path).recover()
        assert (score.stopped, score.ok, dict(score.values)) == (True, False, {})

    @pytest.mark.parametrize("flush", [True, False])
    def test_give_way_to_a_score_of_the_same_rank_vector(self, tmp_path: Path, flush: bool) -> None:
        """Another search, or a resumed one, wanted to know it after all."""
        log = open_log(tmp_path)
        log.record([failed((4, 2), "stopped"), scored((4, None))])
        if flush:
            log.flush()
        log.record([scored((4, 2), 0.25), failed((4, None), "stopped")])
        frame = read_evaluations(Storage(str(tmp_path)))
        assert list(zip(frame["ranks"], frame["status"], frame["accuracy"], strict=True)) == [
            ((4, None), "ok", 0.5),
            ((4, 2), "ok", 0.25),
        ]


def test_a_rank_vector_has_a_row_in_each_precision(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    exact, rough = scored((4, 2), 0.75), scored((4, 2), 0.5, precision="bfloat16")
    log.record([rough, exact])
    log.flush()
    log.record([rough])  # again, by a process that was killed before it flushed
    frame = read_evaluations(Storage(str(tmp_path)))
    assert list(zip(frame["precision"], frame["accuracy"], strict=True)) == [("bfloat16", 0.5), ("float32", 0.75)]
    assert [score.key for score in open_log(tmp_path).recover()] == [((4, 2), "bfloat16"), ((4, 2), "float32")]
