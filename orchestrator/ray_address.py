"""Whether an address leads to a Ray cluster that takes this process, and if not, why.

Ray's own answer is `Failed to connect`, whatever the cause, after 20 s for a wrong token and after 14 minutes for a
port where nothing listens. So it is asked step by step first.
"""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import ray
from ray._private.services import find_node_ids

from orchestrator.ray_token import use_token
from search_spaces.errors import ConfigError

__all__ = ["check_address", "is_loopback", "split_address"]

_TCP_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 15.0
_REFUSED = 3
"""Exit status of the probe when the cluster refuses the token."""

# A process of its own, because Ray's client neither takes a deadline nor keeps its warnings to itself.
_PROBE = f"""
import json, sys
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    known = get_cluster_metadata(GcsClient(address=sys.argv[1])) or {{}}
except AuthenticationError:
    sys.exit({_REFUSED})
print(json.dumps([known.get("ray_version"), known.get("python_version")]))
"""


def split_address(address: str, key: str) -> tuple[str, int]:
    """Host and port of `host:port`, `127.0.0.1:port` or `[::1]:port`.

    Raises:
        ConfigError: it is something else; `ray://` addresses among them, because their clients share no memory with
            the cluster.
    """
    if "://" in address:
        raise ConfigError(key, f"{address!r} has a scheme; give host:port, and run this on a node of that cluster")
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ConfigError(key, f"{address!r} is no address; give host:port of a running Ray head, e.g. 10.0.0.5:6379")
    return host, port


def is_loopback(host: str) -> bool:
    """Whether the host is this machine's loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(address: str, key: str) -> None:
    """Returns if this process can join the cluster at `address`; presents this user's token to it from here on.

    Args:
        address: `host:port`.
        key: what named it, for messages: `cluster.address` or `RAY_ADDRESS`.

    Raises:
        ConfigError: nothing listens there; no Ray head does; it refuses the token; its Ray or Python is another
            version; or this machine is no node of it. Within about 30 s.
    """
    host, port = split_address(address, key)
    _check_port(address, host, port, key)
    has_token = use_token()
    probe = _probe(address, key)
    if probe.returncode == _REFUSED:
        raise ConfigError(key, f"the Ray cluster at {address} refuses {_token_in_use(has_token)}")
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(key, f"what listens at {address} does not answer as a Ray head: {last}")
    _check_versions(address, json.loads(probe.stdout), key)
    if not find_node_ids():
        raise ConfigError(
            key,
            f"this machine is no node of the Ray cluster at {address}; join it with `ray start --address={address}`, "
            "or run this command on a node",
        )


def _check_port(address: str, host: str, port: int, key: str) -> None:
    try:
        socket.create_connection((host, port), _TCP_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            key,
            f"nothing listens at {address} ({reason}); start a head (`ray start --head`), or correct it",
        ) from error


def _probe(address: str, key: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            key,
            f"what listens at {address} did not answer as a Ray head within {_PROBE_TIMEOUT_S:.0f} s; "
            "give the port that the head was started with (`ray start --port`, 6379 unless told otherwise)",
        ) from error


def _token_in_use(has_token: bool) -> str:
    """Names the place that the refused token came from, never the token."""
    if not has_token:
        return (
            "this process, which has no token; copy the head's ~/.ray/auth_token here, or set RAY_AUTH_TOKEN "
            "(and see that RAY_AUTH_MODE is not `disabled`)"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        source = "RAY_AUTH_TOKEN"
    else:
        source = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    return f"the token of {source}; use the one that the head was started with (its own RAY_AUTH_TOKEN or token file)"


def _check_versions(address: str, versions: tuple[str | None, str | None], key: str) -> None:
    ray_version, python_version = versions
    # By default Ray wants the same patch version of Python; this variable of Ray's relaxes it to the minor version.
    minor_only = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor"
    digits = 2 if minor_only else 3
    here = platform.python_version()
    same_python = python_version is None or python_version.split(".")[:digits] == here.split(".")[:digits]
    if ray_version not in (None, ray.__version__) or not same_python:
        raise ConfigError(
            key,
            f"the cluster at {address} runs Ray {ray_version} on Python {python_version}, this process Ray "
            f"{ray.__version__} on Python {here}; both must be the same on all nodes",
        )
