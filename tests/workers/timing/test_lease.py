"""Leases: one holder per physical thing, across processes and users, for as long as somebody lives who uses it."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces.errors import MeasurementError
from workers.timing.lease import LeaseHeldError, lease, lease_folder, lease_holder

HOLD = """
import sys, time
from workers.timing.lease import lease
with lease(sys.argv[1:], "held", "its run", wait_s=5):
    print("held", flush=True)
    time.sleep(600)
"""

RACE = """
import os, sys, time
from workers.timing.lease import lease
record, things = sys.argv[1], sys.argv[2:]
for _ in range(15):
    with lease(things, "racer", wait_s=30):
        began = time.monotonic()
        time.sleep(0.004)
        line = f"{os.getpid()} {began} {time.monotonic()}\\n"
        with open(record, "a") as stream:
            stream.write(line)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKRAY_LEASES", str(tmp_path / "leases"))
    return tmp_path / "leases"


@pytest.fixture
def holder(project: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, that holds core 0."""
    with python(HOLD, "core-0", project=project) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def python(code: str, *arguments: str, project: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def is_free(*things: str) -> bool:
    try:
        with lease(things, "asking", wait_s=0):
            return True
    except LeaseHeldError:
        return False


def test_a_thing_is_held_by_one_and_then_by_another() -> None:
    with lease(["core-0"], "first", wait_s=0) as held:
        assert held.things == ("core-0",)
        assert not is_free("core-0")
    assert is_free("core-0")


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (["core-0"], ["core-1"], True),
        (["core-0", "core-1"], ["core-1", "core-2"], False),
        (["core-0", "core-1"], ["core-0"], False),
        (["card-GPU-1"], ["card-GPU-2"], True),
        (["card-GPU-1", "core-0"], ["core-0"], False),
        (["board-10.0.0.7:22"], ["board-10.0.0.7:22"], False),
    ],
)
def test_sets_conflict_if_they_share_a_thing(one: list[str], other: list[str], together: bool) -> None:
    with lease(one, "one", wait_s=0):
        assert is_free(*other) is together


def test_all_things_or_none() -> None:
    with lease(["core-1"], "one", wait_s=0):
        assert not is_free("core-0", "core-1")
        assert is_free("core-0")


def test_who_waits_in_vain_is_told_who_holds_it(holder: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    with pytest.raises(LeaseHeldError) as raised, lease(["core-0"], "mine", wait_s=0.2):
        pass
    assert 0.2 <= time.monotonic() - started < 5
    held_by = raised.value.holder
    assert held_by is not None
    assert (held_by.pid, held_by.run, held_by.device) == (holder.pid, "its run", "held")
    assert f"mine: core-0 is leased by process {holder.pid} of" in str(raised.value)
    assert lease_holder("core-0") == held_by
    assert lease_holder("core-1") is None


def test_a_killed_holder_holds_nothing(holder: subprocess.Popen[str]) -> None:
    assert not is_free("core-0")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert is_free("core-0")
    assert lease_holder("core-0") is None


def test_a_lease_counts_from_when_it_was_had_not_from_when_it_was_wanted(holder: subprocess.Popen[str]) -> None:
    freed: list[float] = []

    def free() -> None:
        freed.append(time.time())
        holder.kill()

    timer = threading.Timer(0.3, free)
    timer.start()
    with lease(["core-0"], "next", wait_s=60):
        held_by = lease_holder("core-0")
    timer.join()
    assert held_by is not None
    assert held_by.device == "next"
    assert held_by.since >= freed[0]


def test_a_child_that_inherits_a_lease_keeps_it_after_its_parent(project: Path) -> None:
    parent = """
import subprocess, sys
from workers.timing.lease import lease
with lease(["core-0"], "held", wait_s=0) as held:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=held.descriptors)
    print(child.pid, flush=True)
    sys.stdin.read()
"""
    with python(parent, project=project) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        assert not is_free("core-0"), "the child may still use the device"
        os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not is_free("core-0"):
        assert time.monotonic() < deadline


def test_racing_processes_never_overlap(tmp_path: Path, project: Path) -> None:
    """Sets in different orders, that all share a core: nobody waits in a circle either."""
    record = tmp_path / "record"
    sets = [("core-0", "core-1"), ("core-1", "core-0", "core-2"), ("core-1",)]
    racers = [python(RACE, str(record), *things, project=project) for things in sets]
    assert [racer.wait(timeout=60) for racer in racers] == [0, 0, 0]
    held = sorted((float(began), float(ended), pid) for pid, began, ended in map(str.split, record.open()))
    assert len(held) == 45
    for (_, ended, _), (began, _, _) in itertools.pairwise(held):
        assert ended <= began


def test_whoever_waits_goes_before_whoever_comes_back(project: Path, folder: Path) -> None:
    once = RACE.replace("range(15)", "range(1)")
    with tempfile.NamedTemporaryFile() as record:
        with lease(["core-0"], "mine", wait_s=0):
            waiting = python(once, record.name, "core-0", project=project)
            wait_for_one_who_waits(folder / "core-0.next")
        with lease(["core-0"], "mine again", wait_s=20):
            assert Path(record.name).read_text(), "the other one waited for longer"
        assert waiting.wait(timeout=20) == 0


def wait_for_one_who_waits(turnstile: Path) -> None:
    deadline = time.monotonic() + 20
    with turnstile.open() as stream:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(stream, fcntl.LOCK_UN)
            time.sleep(0.05)
    raise AssertionError("nobody waits")


def test_locks_are_for_every_user_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with lease(["core-0"], "mine", wait_s=0):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666}


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_another_user_waits_for_the_same_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        monkeypatch.setenv("RANKRAY_LEASES", f"{place}/leases")
        with lease(["core-0"], "root's", wait_s=0):
            assert as_nobody("core-0") == "held"
        assert as_nobody("core-0") == "free"


def as_nobody(thing: str) -> str:
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            os._exit(0 if is_free(thing) else 1)
        finally:
            os._exit(2)
    return {0: "free", 1: "held"}.get(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "error")


def test_what_somebody_else_wrote_beside_a_lock_does_no_harm(folder: Path) -> None:
    with lease(["core-0"], "mine", wait_s=0):
        for text in (b"", b"no json", b'["a list"]', b'{"pid": 3}', b'{"device": "x", "more": 1}'):
            (folder / "core-0.lock").write_bytes(text)
            assert lease_holder("core-0") is not None, "it is held, whoever holds it"
            assert not is_free("core-0")


def test_names_stay_in_the_folder(folder: Path) -> None:
    with lease(["board-../../etc/passwd"], "mine", wait_s=0):
        assert {path.parent for path in folder.rglob("*.lock")} == {folder}


@pytest.mark.parametrize("bad", ["a file", "a link"])
def test_a_folder_that_is_none_is_said(tmp_path: Path, folder: Path, bad: str) -> None:
    if bad == "a file":
        folder.write_text("")
    else:
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MeasurementError, match="RANKRAY_LEASES names another"):
        lease_folder()


def test_a_link_in_a_locks_place_is_not_followed(tmp_path: Path, folder: Path) -> None:
    lease_folder()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "core-0.lock").symlink_to(victim)
    with pytest.raises(MeasurementError, match="no lease can be taken"):
        is_free("core-0")
    assert victim.read_text() == "precious"
