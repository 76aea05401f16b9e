"""What all tests share: an environment that touches nobody else's Ray, the data folder, and one Ray for the session."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from orchestrator.ray_cluster import Cluster

# Before anything imports Ray. A token of the session's own keeps Ray from writing one into the user's home, and without
# an address no test can reach a cluster that somebody works on.
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")  # a busy machine imports torch slowly
# Nor does a test wait for whoever times this machine now, or keep anybody waiting.
_leases = tempfile.TemporaryDirectory(prefix="rankray-leases-")
os.environ.setdefault("RANKRAY_LEASES", _leases.name)


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds `cifar10/`; the project does not ship it."""
    folder = os.environ.get("RANKRAY_DATA")
    if not folder or not Path(folder, "cifar10").is_dir():
        pytest.skip("needs RANKRAY_DATA, a folder with cifar10/")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Ray on this machine, started once (some seconds), with four CPUs in its books however many there are."""
    import ray

    from orchestrator.config.schema import ClusterSettings
    from orchestrator.ray_cluster import connect

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        with connect(ClusterSettings()) as cluster:
            yield cluster
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network trained on digits."""
    from tests.orchestrator.digits_run import save_digits_network

    return save_digits_network(tmp_path_factory.mktemp("digits"))
