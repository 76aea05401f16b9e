"""Leases: who may time a physical thing now. Locks of the system, that runs and users on one machine share.

A lock lies in a folder that everybody on the machine may use, under the name of the physical thing (`core-0`,
`gpu-GPU-5d1c...`, `board-10.0.0.7`), not of the device in somebody's config: two names for one card conflict, and so do
two sets of cores that share one. The system frees the locks of a process that dies.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from search_spaces.errors import MeasurementError

__all__ = ["Holder", "Lease", "LeaseHeldError", "lease", "lease_folder", "lease_holder"]

_POLL_S = 0.02


@dataclass(frozen=True)
class Holder:
    """Who has a lease, as it wrote beside it.

    Attributes:
        device: by its name in the holder's config.
        run: of the holder.
        user, pid: of the holding process.
        since: when it got the lease, in seconds since the epoch.
    """

    device: str
    run: str
    user: str
    pid: int
    since: float

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%H:%M:%S")
        run = f", run {self.run}" if self.run else ""
        return f"process {self.pid} of {self.user}{run}, as {self.device!r}, since {since}"


class LeaseHeldError(MeasurementError):
    """Somebody else times the device and did not finish in time.

    Attributes:
        thing: the physical thing that is held.
        holder: who holds it; None where nobody wrote it down.
    """

    def __init__(self, device: str, thing: str, holder: Holder | None, waited_s: float) -> None:
        by = f" by {holder}" if holder else ""
        super().__init__(device, f"{thing} is leased{by}; waited {waited_s:.0f} s")
        self.thing = thing
        self.holder = holder


@dataclass(frozen=True)
class Lease:
    """A lease in force.

    Attributes:
        things: the physical things that it covers.
        descriptors: of its locks. A child process that inherits them keeps the lease in force until it ends, however
            its parent ends.
    """

    things: tuple[str, ...]
    descriptors: tuple[int, ...]


@contextmanager
def lease(things: Sequence[str], device: str, run: str = "", *, wait_s: float) -> Iterator[Lease]:
    """Holds the lease of physical things: all of them, or none.

    Whoever waits goes next: a holder that comes back at once queues behind it.

    Args:
        things: names of what is timed; see the module.
        device, run: written down for those who wait.
        wait_s: how long to wait for each thing.

    Raises:
        LeaseHeldError: somebody held one for longer.
        MeasurementError: the folder cannot be used.
    """
    ordered = sorted(set(things))  # everybody in one order: nobody waits in a circle
    taken: list[int] = []
    try:
        for thing in ordered:
            taken.append(_take(thing, Holder(device, run, _user(), os.getpid(), time.time()), wait_s))
        yield Lease(tuple(ordered), tuple(taken))
    finally:
        for descriptor in reversed(taken):
            os.close(descriptor)


def lease_holder(thing: str) -> Holder | None:
    """Who has the lease of a physical thing; None if it is free.

    Raises:
        MeasurementError: the folder cannot be used.
    """
    path = lease_folder() / f"{_file_name(thing)}.lock"
    if not path.exists():
        return None
    descriptor = _open(path)
    try:
        if _locked(descriptor, fcntl.LOCK_SH):  # shared: two who ask do not see one another
            return None
        return _read(descriptor) or Holder("?", "", "?", 0, path.stat().st_mtime)
    finally:
        os.close(descriptor)


def lease_folder() -> Path:
    """The folder of the locks: RANKRAY_LEASES, else below `/tmp`, whatever TMPDIR a user or a batch job has.

    Containers on one machine share it only if it is mounted into them.

    Raises:
        MeasurementError: it cannot be made, or is not everybody's.
    """
    common = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    folder = Path(os.environ.get("RANKRAY_LEASES") or common / "rankray-leases")
    try:
        with suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(0o1777)  # mkdir's own mode is cut by the umask
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise NotADirectoryError("it is no folder")
    except OSError as error:
        raise MeasurementError(str(folder), f"no place for leases: {error}; RANKRAY_LEASES names another") from None
    return folder


def _take(thing: str, holder: Holder, wait_s: float) -> int:
    """The descriptor of a thing's lock, held.

    The lock is waited for with a second one in hand, the turnstile: without it the process that just gave the lock
    back would take it again before a waiting one looks.
    """
    started = time.monotonic()
    folder, name = lease_folder(), _file_name(thing)
    turnstile, lock = _open(folder / f"{name}.next"), -1
    try:
        lock = _open(folder / f"{name}.lock")
        if not _wait(turnstile, started + wait_s) or not _wait(lock, started + wait_s):
            raise LeaseHeldError(holder.device, thing, _read(lock), time.monotonic() - started)
        _write(lock, replace(holder, since=time.time()))  # it may have waited
        return lock
    except BaseException:
        if lock >= 0:
            os.close(lock)
        raise
    finally:
        os.close(turnstile)


def _wait(descriptor: int, deadline: float) -> bool:
    while not _locked(descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    """Opens a lock's file, for every user.

    filelock opens with O_CREAT, which Linux refuses in a folder such as this one where another user made the file
    (fs.protected_regular); so the file is made and opened in two steps. Links are not followed.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        while True:
            with suppress(FileNotFoundError):
                return os.open(path, flags)
            with suppress(FileExistsError):
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(descriptor, 0o666)  # open's own mode is cut by the umask
                return descriptor
    except OSError as error:
        raise MeasurementError(
            str(path), f"no lease can be taken: {error}; RANKRAY_LEASES names another folder"
        ) from None


def _write(descriptor: int, holder: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def _read(descriptor: int) -> Holder | None:
    """What the holder wrote; None where it did not yet, or somebody wrote something else."""
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have them
        return str(os.getuid())


def _file_name(thing: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in thing)
