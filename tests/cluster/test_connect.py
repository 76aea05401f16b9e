"""Joining a running Ray cluster, and being told why that fails. The head is a real one, on loopback, with a token."""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.nodes import end_session, environ, free_port, start_node

pytestmark = pytest.mark.cluster

HEAD_CPUS = 3

# Prints one JSON line: what a session that ran `body` saw, or the one-line error.
DRIVER = """
import json, os, sys, time
from orchestrator.config.schema import ClusterSettings
from orchestrator.ray_cluster import connect
from search_spaces.errors import ConfigError
settings = ClusterSettings(**json.loads(sys.argv[1]))
started = time.monotonic()
try:
    with connect(settings) as cluster:
        import ray
        said = {"nodes": len(cluster.nodes()), "cpus": cluster.cpus_free, "gpus": cluster.gpus_free,
                "fit": [cluster.evaluators_that_fit(threads) for threads in (1, 2)]}
        exec(sys.argv[2])
except ConfigError as error:
    said = {"error": str(error), "key": error.key, "seconds": time.monotonic() - started}
else:
    said["left"] = not ray.is_initialized()
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    token: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: the names of Unix sockets below it may have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="rr", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[Head]:
    token, port = secrets.token_hex(32), free_port()
    environment = environ(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    options = f"--head --port={port} --num-cpus={HEAD_CPUS} --temp-dir={folder}/ray --include-dashboard=false --block"
    process = start_node(folder, "head", options, environment)
    try:
        yield Head(f"127.0.0.1:{port}", token, process)
    finally:
        end_session(process)


def drive(folder: Path, settings: dict[str, Any], body: str = "", **more: str) -> dict[str, Any]:
    """Connects in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(settings), body],
        env=environ(folder, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**said, "stderr": done.stderr}


def test_joins_by_the_configured_address(head: Head, folder: Path) -> None:
    said = drive(folder, {"address": head.address}, RAY_AUTH_TOKEN=head.token)

    assert (said["nodes"], said["cpus"], said["gpus"]) == (1, HEAD_CPUS, 0)
    assert said["fit"] == [3, 1]
    assert said["stderr"] == ""


def test_joins_by_the_address_in_the_environment_with_the_token_of_the_home_folder(head: Head, folder: Path) -> None:
    file = folder / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(head.token)
    try:
        assert drive(folder, {}, RAY_ADDRESS=head.address)["cpus"] == HEAD_CPUS
    finally:
        file.unlink()


def test_workers_import_the_modules_of_the_drivers_folders(head: Head, folder: Path) -> None:
    (folder / "their_nets.py").write_text("WIDTH = 7\n")
    body = """
@ray.remote
def width():
    import their_nets
    return their_nets.WIDTH
said["width"] = ray.get(width.remote())
"""

    assert drive(folder, {"address": head.address}, body, RAY_AUTH_TOKEN=head.token)["width"] == 7


def test_leaving_disconnects_and_the_cluster_goes_on(head: Head, folder: Path) -> None:
    assert drive(folder, {"address": head.address}, RAY_AUTH_TOKEN=head.token)["left"]
    assert head.process.poll() is None
    assert drive(folder, {"address": head.address}, RAY_AUTH_TOKEN=head.token)["cpus"] == HEAD_CPUS


def test_counts_what_others_hold(head: Head, folder: Path) -> None:
    body = """
@ray.remote(num_cpus=2)
class Holder:
    def here(self): return True
holder = Holder.remote()
ray.get(holder.here.remote())
deadline = time.monotonic() + 20
while cluster.cpus_free > 1 and time.monotonic() < deadline:
    time.sleep(0.1)
said["fit"] = [cluster.evaluators_that_fit(threads) for threads in (1, 2)]
"""
    said = drive(folder, {"address": head.address}, body, RAY_AUTH_TOKEN=head.token)

    assert said["fit"] == [1, 1], "the evaluator of two threads does not fit now, but one can wait for its CPUs"


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (
            {"RAY_AUTH_TOKEN": "f" * 64},
            ["refuses the token of RAY_AUTH_TOKEN", "the one that the head was started with"],
        ),
        ({}, ["refuses this process, which has no token", "~/.ray/auth_token"]),
    ],
    ids=["wrong", "none"],
)
def test_a_refused_token_is_named_as_the_cause(
    head: Head, folder: Path, token: dict[str, str], words: list[str]
) -> None:
    said = drive(folder, {"address": head.address}, **token)

    assert said["key"] == "cluster.address"
    assert all(word in said["error"] for word in [head.address, *words]), said["error"]
    assert "f" * 64 not in said["error"]
    assert said["seconds"] < 30
    assert said["stderr"] == ""


def test_an_address_where_nothing_listens_is_named_as_the_cause(folder: Path) -> None:
    said = drive(folder, {}, RAY_ADDRESS=f"127.0.0.1:{free_port()}")

    assert said["key"] == "RAY_ADDRESS"
    assert "nothing listens at 127.0.0.1:" in said["error"]
    assert said["seconds"] < 30


def test_a_listener_that_is_no_ray_head_is_named_as_the_cause(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        said = drive(folder, {"address": f"127.0.0.1:{mute.getsockname()[1]}"})

    assert "did not answer as a Ray head" in said["error"]
    assert said["seconds"] < 30


def test_another_version_of_ray_is_named_as_the_cause(head: Head, folder: Path) -> None:
    (folder / "older").mkdir()
    (folder / "older" / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.9.9'\n")
    paths = os.pathsep.join([str(folder / "older"), str(Path(__file__).parents[2])])

    said = drive(folder, {"address": head.address}, RAY_AUTH_TOKEN=head.token, PYTHONPATH=paths)

    assert f"runs Ray {ray.__version__} on Python {platform.python_version()}, this process Ray 2.9.9" in said["error"]


def test_more_evaluators_than_the_nodes_can_ever_hold_are_refused(head: Head, folder: Path) -> None:
    said = drive(folder, {"address": head.address, "evaluators": HEAD_CPUS + 1}, RAY_AUTH_TOKEN=head.token)

    assert said["key"] == "cluster.evaluators"
    assert "hold at most 3" in said["error"]


def test_an_evaluator_larger_than_every_node_is_refused(head: Head, folder: Path) -> None:
    settings = {"address": head.address, "threads_per_evaluator": HEAD_CPUS + 1}

    said = drive(folder, settings, RAY_AUTH_TOKEN=head.token)

    assert said["key"] == "cluster.threads_per_evaluator"


def test_without_an_address_ray_listens_on_loopback_only_and_its_token_is_private(folder: Path) -> None:
    body = """
import psutil
family = [psutil.Process(), *psutil.Process().children(recursive=True)]
said["listening"] = [at.laddr.ip for one in family for at in one.net_connections("inet") if at.status == "LISTEN"]
said["mode"] = oct(os.stat(os.path.expanduser("~/.ray/auth_token")).st_mode & 0o777)
said["authentication"] = os.environ["RAY_AUTH_MODE"]
"""
    said = drive(folder, {}, body)

    assert len(said["listening"]) > 3
    assert {ip.removeprefix("::ffff:") for ip in said["listening"]} <= {"127.0.0.1", "::1"}
    assert (said["mode"], said["authentication"]) == ("0o600", "token")
    assert said["stderr"] == ""
