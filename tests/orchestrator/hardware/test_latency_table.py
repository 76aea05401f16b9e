"""The latency table: shared by runs, readable by all, believed only as far as its entries agree."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.hardware import latency_table
from orchestrator.hardware.latency_table import AGREEMENT, Conditions, LatencyTable, Work
from orchestrator.hardware.measurement_rows import SCHEMA, VERSION_KEY, measurement_from, row_of
from search_spaces.errors import ConfigError, RunStoppedError
from tests.orchestrator.hardware.made_up import measurement
from workers.timing.contract import Measurement, Status

WORK = Work("layer", "a layer", 1)
HERE = Conditions.of(measurement(1.0))

WRITER = """
import sys
from orchestrator.hardware import latency_table
from tests.orchestrator.hardware.made_up import measurement
latency_table._MANY_FILES = 3
table = latency_table.LatencyTable(sys.argv[1])
for number in range(12):
    table.add([measurement(1.0 + number, f"{sys.argv[2]} {number}")])
    table.merge_files()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "table"


def ms(table: LatencyTable, work: Work = WORK, conditions: Conditions = HERE) -> float | None:
    found = table.find(conditions, work)
    return None if found is None or found.spread is None else found.spread.median_ms


def test_what_one_adds_others_find(folder: Path) -> None:
    one, other = LatencyTable(str(folder)), LatencyTable(str(folder))
    taken = measurement(2.5)
    one.add([taken])
    assert ms(other) is None
    other.refresh()
    assert other.find(HERE, WORK) == taken == one.find(HERE, WORK)
    assert LatencyTable(str(folder)).find(HERE, WORK) == taken


@given(st.builds(measurement, st.floats(1e-4, 1e4), st.text(), at=st.floats(0, 1e10)))
def test_a_row_is_the_measurement(taken: Measurement) -> None:
    table = pa.Table.from_pylist([row_of("id", taken)], SCHEMA)
    assert measurement_from(table.to_pylist()[0]) == taken


def test_a_row_without_times_is_the_measurement() -> None:
    failed = replace(measurement(1.0, status="error"), spread=None)
    assert measurement_from(row_of("id", failed)) == failed
    drifting = measurement_from(row_of("id", replace(failed, drift=math.nan)))
    assert math.isnan(drifting.drift)


@pytest.mark.parametrize(
    "change",
    [
        {"device_model": "Another"},
        {"power_mode": "powersave"},
        {"backend": "onnxruntime"},
        {"versions": {"torch": "2", "driver": "1.1"}},
        {"threads": 2},
        {"precision": "float16"},
        {"subject": "another layer"},
        {"batch_size": 8},
        {"kind": "network"},
    ],
)
def test_what_was_measured_is_the_key(folder: Path, change: dict[str, object]) -> None:
    table = LatencyTable(str(folder))
    table.add([measurement(1.0), measurement(7.0, **change)])
    assert ms(table) == 1.0
    assert not table.contradictions()


def test_two_devices_of_a_kind_share_their_entries(folder: Path) -> None:
    table = LatencyTable(str(folder))
    table.add([measurement(1.0, device="board-7", node="seven", versions={"driver": "1", "torch": "2"})])
    assert ms(table) == 1.0


@pytest.mark.parametrize("status", ["noisy", "throttled", "timeout", "wrong", "error"])
def test_only_good_measurements_enter(folder: Path, status: Status) -> None:
    table = LatencyTable(str(folder))
    with pytest.raises(ValueError, match="only good measurements"):
        table.add([measurement(1.0), measurement(2.0, status=status)])
    assert len(LatencyTable(str(folder))) == 0


def test_of_entries_that_agree_the_newest_counts(folder: Path) -> None:
    table = LatencyTable(str(folder))
    table.add([measurement(1.0, at=3.0), measurement(1.04, at=5.0), measurement(1.02, at=4.0)])
    assert ms(table) == 1.04
    assert table.contradictions() == []


def test_entries_within_their_spreads_agree_however_far_apart(folder: Path) -> None:
    table = LatencyTable(str(folder))
    table.add([measurement(1.0, width=0.2, at=1.0), measurement(1.3, width=0.2, at=2.0)])
    assert ms(table) == 1.3


def test_two_that_contradict_are_set_aside_and_named_until_a_third_decides(folder: Path) -> None:
    table = LatencyTable(str(folder))
    table.add([measurement(1.0, at=1.0, device="cpu0"), measurement(2.0, at=2.0, device="cpu1")])
    assert ms(table) is None
    (contradiction,) = table.contradictions()
    assert str(contradiction).startswith("a layer (batch 1; A Processor, torch): 2 ms on cpu1, 1 ms on cpu0; set aside")
    assert table.frame().empty
    table.add([measurement(1.01, at=3.0)])
    assert ms(table) == 1.01
    assert table.contradictions() == []


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=5))
def test_what_counts_is_the_newest_that_agrees_with_another(values: list[float]) -> None:
    entries = [measurement(value, at=float(len(values) - place), width=0.0) for place, value in enumerate(values)]

    def agree(one: float, other: float) -> bool:
        return one == other or abs(one - other) <= AGREEMENT * min(one, other)

    expected = [
        value
        for place, value in enumerate(values)
        if len(values) == 1 or any(agree(value, other) for at, other in enumerate(values) if at != place)
    ]
    found = latency_table._chosen(entries)
    assert (None if found is None or found.spread is None else found.spread.median_ms) == (expected or [None])[0]


def test_writers_and_mergers_at_once_lose_nothing(folder: Path, project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(project)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name], env=environment) for name in ("one", "two")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    table = LatencyTable(str(folder))
    assert len(table) == 24
    for name in ("one", "two"):
        assert [ms(table, Work("layer", f"{name} {number}", 1)) for number in range(12)] == [1.0 + n for n in range(12)]
    assert len(list(folder.glob("*.parquet"))) < 24


def test_a_merge_that_was_cut_short_doubles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "_MANY_FILES", 1)
    table = LatencyTable(str(folder))
    for number in range(4):
        table.add([measurement(1.0, f"layer {number}")])
    kept = {path: path.read_bytes() for path in folder.glob("*.parquet")}
    table.merge_files()
    assert len(list(folder.glob("*.parquet"))) == 1
    for path, content in kept.items():  # as if it had died before it deleted
        path.write_bytes(content)
    assert len(LatencyTable(str(folder))) == len(LatencyTable(str(folder)).frame()) == 4


def test_anybody_can_read_it(folder: Path) -> None:
    LatencyTable(str(folder)).add([measurement(1.5)])
    frame = pd.read_parquet(folder)
    assert frame[["device_model", "subject", "median_ms", "status"]].to_dict("records") == [
        {"device_model": "A Processor", "subject": "a layer", "median_ms": 1.5, "status": "ok"}
    ]
    assert frame["versions"][0] == '{"driver": "1", "torch": "2"}'


def test_another_version_of_the_table_is_refused(folder: Path) -> None:
    LatencyTable(str(folder)).add([measurement(1.5)])
    (part,) = folder.glob("*.parquet")
    for version, told in ((2, "a newer RankRay reads it"), (0, "an older RankRay wrote it")):
        table = pq.read_table(part).replace_schema_metadata({VERSION_KEY: str(version).encode()})
        pq.write_table(table, part)
        wanted = f"has schema version {version}, this RankRay has 1: {told}; .* measure anew"
        with pytest.raises(ConfigError, match=wanted):
            LatencyTable(str(folder))


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    folder.mkdir()
    pd.DataFrame({"x": [1]}).to_parquet(folder / "images.parquet")
    with pytest.raises(ConfigError, match=r"timing\.table: .*images\.parquet: is no file of a latency table"):
        LatencyTable(str(folder))


def test_a_torn_file_is_named(folder: Path) -> None:
    LatencyTable(str(folder)).add([measurement(1.5)])
    (part,) = folder.glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=rf"{part.name}: is no readable Parquet file"):
        LatencyTable(str(folder))


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table_in_file = str(tmp_path / "file")
    with pytest.raises((ConfigError, RunStoppedError), match="file"):
        LatencyTable(table_in_file).add([measurement(1.0)])
