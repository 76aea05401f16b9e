"""A call in a child process: its answer, or in one line why there is none; nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search_spaces.errors import ConfigError
from tests.workers.timing import child_calls
from workers.timing.child import ChildFailedError, ChildTimeoutError, alive, call_in_child


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_gone(record: Path) -> None:
    pids = [int(pid) for pid in record.read_text().split()]
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a process outlived its call"
        time.sleep(0.02)


def test_the_call_runs_in_a_process_and_session_of_its_own_with_this_ones_modules() -> None:
    pid, group, variable, path = call_in_child(
        child_calls.where_it_runs, ("THREADS",), device="x", silence_s=20, environment={"THREADS": "3"}
    )
    assert pid != os.getpid()
    assert group == pid
    assert variable == "3"
    assert path == sys.path
    assert "THREADS" not in os.environ


def test_a_mistake_of_the_users_comes_back_as_it_was_raised() -> None:
    with pytest.raises(ConfigError, match=r"^devices\.x\.options: is wrong; write it right$"):
        call_in_child(child_calls.mistake, (), device="x", silence_s=20)


def test_what_a_call_raises_is_told_in_one_line() -> None:
    assert call_in_child(child_calls.divide, (1.0, 2.0), device="x", silence_s=20) == 0.5
    with pytest.raises(ChildFailedError, match=r"^x: ZeroDivisionError: float division by zero$"):
        call_in_child(child_calls.divide, (1.0, 0.0), device="x", silence_s=20)


@pytest.mark.parametrize(("how", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_child_that_dies_is_told_with_its_last_line(how: int, name: str) -> None:
    with pytest.raises(ChildFailedError, match=f"^x: its process ended with {name}: the last words$"):
        call_in_child(child_calls.die, (how,), device="x", silence_s=20)


def test_a_child_that_says_nothing_and_leaves_is_told() -> None:
    with pytest.raises(ChildFailedError, match=r"^x: its process ended with status 3$"):
        call_in_child(child_calls.leave, (3,), device="x", silence_s=20)


def test_a_silent_child_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ChildTimeoutError, match=r"^x: hangs: no sign of life for 1 s; its process was killed$"):
        call_in_child(child_calls.sleep, (600, str(tmp_path / "pids")), device="x", silence_s=1)
    assert time.monotonic() - started < 60
    assert_gone(tmp_path / "pids")


def test_a_long_call_that_gives_signs_of_life_is_left_alone() -> None:
    assert call_in_child(child_calls.work, (2.5,), device="x", silence_s=1) == "done"
    alive()  # outside a child it is nothing


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path, project: Path) -> None:
    record = tmp_path / "pids"
    code = f"from tests.workers.timing.child_calls import parent; parent({str(record)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(project)})
    deadline = time.monotonic() + 30
    while not record.exists() or len(record.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child, grandchild = (int(pid) for pid in record.read_text().split())
    process.kill()
    process.wait()
    record.write_text(str(child))
    assert_gone(record)
    os.kill(grandchild, signal.SIGKILL)


def test_modules_in_the_current_directory_stand_in_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    assert call_in_child(child_calls.divide, (1.0, 4.0), device="x", silence_s=20) == 0.25
