"""Real boards for tests, as far as one machine has them: bare interpreters of other versions, an sshd on loopback."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

__all__ = ["SshServer", "bare_python", "bare_pythons", "ssh_server"]


@functools.cache
def bare_pythons() -> dict[str, str]:
    """Interpreters by version, oldest first: those of pyenv and on the PATH, that are not the one of the tests."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))]
    found = [path for root in roots for path in root.glob("versions/3.*/bin/python3")]
    found += [Path(path) for minor in range(6, 15) if (path := shutil.which(f"python3.{minor}"))]
    versions: dict[tuple[int, ...], str] = {}
    for path in found:
        asked = "import sys; print(*sys.version_info[:3])"
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            shown = subprocess.run([path, "-c", asked], capture_output=True, text=True, timeout=20, check=True)
            versions.setdefault(tuple(map(int, shown.stdout.split())), str(path))
    return {".".join(map(str, version)): versions[version] for version in sorted(versions)}


def bare_python() -> str:
    """The oldest interpreter there is; skips where there is none but that of the tests."""
    found = bare_pythons()
    if not found:
        pytest.skip("no other Python here (looked for pyenv's and python3.6 to python3.14 on the PATH)")
    return next(iter(found.values()))


@dataclass(frozen=True)
class SshServer:
    """An sshd of this user, on loopback.

    Attributes:
        config: for ssh: knows it as `board`, with key and host key; as `stranger`, without its host key.
        pid: of the listening process.
    """

    config: Path
    pid: int

    def cut(self) -> None:
        """Kills this end of every connection, as if somebody had pulled the plug; not what runs behind it."""
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "sshd" in process.name():
                    process.kill()

    def agents(self) -> list[psutil.Process]:
        """What connections run on the `board`."""
        return [one for one in psutil.Process(self.pid).children(recursive=True) if "board_agent" in _line(one)]


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Runs an sshd with keys and configuration in a folder; skips where there is no sshd."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no sshd here (Debian: openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, shuts its unprivileged half in
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "unknown").write_text("")
    config = "".join(
        f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentitiesOnly yes\n"
        f"  IdentityFile {folder}/user_key\n  UserKnownHostsFile {folder}/{known}\n  GlobalKnownHostsFile none\n"
        for name, known in (("board", "known"), ("stranger", "unknown"))
    )
    (folder / "ssh_config").write_text(config)
    server = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        _await_port(server, port)
        yield SshServer(folder / "ssh_config", server.pid)
    finally:
        left = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.kill()
        server.wait()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _await_port(server: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.skip(f"sshd does not serve this user here (status {server.poll()})")
