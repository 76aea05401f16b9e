"""The Ray cluster that a run works on: joined where there is an address, otherwise started on this machine alone."""

from __future__ import annotations

import logging
import math
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.state import available_resources_per_node
from ray.job_config import JobConfig

from orchestrator.config.schema import ClusterSettings
from orchestrator.ray_address import check_address, is_loopback, split_address
from orchestrator.ray_token import keep_token_private
from search_spaces.errors import ConfigError

__all__ = ["Cluster", "Node", "connect"]

_ROUNDING = 1e-6
"""Of fractions of GPUs: ten tenths are a whole."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as it was when asked.

    Attributes:
        node_id: Ray's.
        address: IP address.
        total: what it was started with, by Ray's resource name (`CPU`, `GPU`, `jetson`, `memory` in bytes).
        free: what of it nobody holds.
        labels: `ray.io/node-id` and the labels it was started with.
    """

    node_id: str
    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str]


class Cluster:
    """The cluster that this process is connected to. Every answer is read afresh: nodes come and go."""

    def nodes(self) -> list[Node]:
        """The living nodes."""
        free = available_resources_per_node()
        return [
            Node(
                node_id=node["NodeID"],
                address=node["NodeManagerAddress"],
                total=dict(node["Resources"]),
                # A node that has just come has not reported yet: nothing of it is taken.
                free=dict(free.get(node["NodeID"], node["Resources"])),
                labels=dict(node["Labels"]),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    @property
    def cpus_free(self) -> float:
        """CPUs that nobody holds, over all nodes."""
        return sum(node.free.get("CPU", 0.0) for node in self.nodes())

    @property
    def gpus_free(self) -> float:
        """GPUs that nobody holds, over all nodes."""
        return sum(node.free.get("GPU", 0.0) for node in self.nodes())

    def evaluators_that_fit(self, threads: int, gpus: float = 0.0) -> int:
        """How many evaluators of so many threads and GPUs fit now; at least one, which waits until it does.

        Raises:
            ConfigError: no node is large enough for even one.
        """
        self._evaluators_ever(threads, gpus)
        return max(1, sum(_room(node.free, threads, gpus) for node in self.nodes()))

    def check_evaluators(self, evaluators: int | str, threads: int, gpus: float = 0.0) -> None:
        """Returns if the wanted evaluators fit once all CPUs and GPUs are free; Ray would wait forever, and silently.

        Raises:
            ConfigError: the nodes that are there now can never hold them.
        """
        most = self._evaluators_ever(threads, gpus)
        if evaluators != "auto" and int(evaluators) > most:
            raise ConfigError(
                "cluster.evaluators",
                f"{evaluators} evaluators of {_needs(threads, gpus)} do not fit: {self._size(gpus)} hold at most "
                f"{most}; ask for {most} or `auto`, or add nodes",
            )

    def _evaluators_ever(self, threads: int, gpus: float) -> int:
        nodes = self.nodes()
        most = sum(_room(node.total, threads, gpus) for node in nodes)
        if most:
            return most
        wanted, size = _needs(threads, gpus), self._size(gpus)
        if any(_room(node.total, threads, 0.0) for node in nodes):
            raise ConfigError(
                "cluster.gpus_per_evaluator",
                f"no node has room for an evaluator of {wanted}: {size}; set 0 to score on CPUs, or add a node whose "
                "GPUs Ray counts (`ray start --num-gpus`)",
            )
        raise ConfigError(
            "cluster.threads_per_evaluator",
            f"no node has room for an evaluator of {wanted}: {size}; ask for fewer threads",
        )

    def _size(self, gpus: float) -> str:
        nodes = self.nodes()
        cpus = ", ".join(str(int(node.total.get("CPU", 0.0))) for node in nodes)
        size = f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {cpus} CPUs"
        held = ", ".join(f"{node.total.get('GPU', 0.0):g}" for node in nodes)
        return f"{size} and {held} GPUs" if gpus else size


def _room(resources: Mapping[str, float], threads: int, gpus: float) -> int:
    """How many evaluators fit into a node's resources."""
    by_cpus = int(resources.get("CPU", 0.0) // threads)
    if not gpus:
        return by_cpus
    each = math.floor(1.0 / gpus + _ROUNDING)  # no evaluator has parts of two GPUs
    whole, part = divmod(resources.get("GPU", 0.0) + _ROUNDING, 1.0)
    return min(by_cpus, int(whole) * each + math.floor(part / gpus))


def _needs(threads: int, gpus: float) -> str:
    text = f"{threads} thread{'s' * (threads != 1)}"
    return f"{text} and {gpus:g} GPU{'s' * (gpus > 1)}" if gpus else text


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[Cluster]:
    """Connects this process to a cluster, and takes back on leaving what it did.

    With `settings.address` or RAY_ADDRESS it joins that cluster. Otherwise, or with the address `local`, it starts Ray
    on this machine: loopback only, token authentication, no dashboard, all cores. Where this process is connected
    already, that connection is used and stays.

    Raises:
        ConfigError: the cluster cannot be joined, or can never hold the wanted evaluators.
    """
    connected_before = ray.is_initialized()
    try:
        if not connected_before:
            _initialise(settings.address)
        cluster = Cluster()
        cluster.check_evaluators(settings.evaluators, settings.threads_per_evaluator, settings.gpus_per_evaluator)
        yield cluster
    finally:
        if not connected_before:
            ray.shutdown()


def _initialise(wanted: str | None) -> None:
    key = "cluster.address" if wanted else "RAY_ADDRESS"
    address = wanted or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray gives up workers that have not reported after a minute. On a busy or slow machine importing torch takes
    # longer, and workers that are started over and over never get there.
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _job_config()}
    if address == "local":
        keep_token_private()
        with _loopback():
            ray.init("local", include_dashboard=False, **quiet)
        return
    check_address(address, key)
    try:
        if is_loopback(split_address(address, key)[0]):
            with _loopback():
                ray.init(address, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ConfigError(key, f"Ray could not join {address}: {' '.join(str(error).split())}") from error


@contextmanager
def _loopback() -> Iterator[None]:
    """Lets Ray take 127.0.0.1 for what it is.

    On Linux Ray replaces a loopback address by the machine's outer one and listens on every interface, even if told
    `_node_ip_address="127.0.0.1"`. The switch that it has for desktops keeps it, and what it starts, on loopback.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    in_environment = os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[name] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if in_environment is None:
            del os.environ[name]
        else:
            os.environ[name] = in_environment


def _job_config() -> JobConfig:
    """Has the workers find a user's modules where this process finds them: in the same folders, in the same order."""
    installed = {Path(path).resolve() for path in (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix)}
    config = JobConfig()
    for entry in reversed(sys.path):  # a worker puts each in front of the ones before
        folder = Path(entry or ".").resolve()
        if folder.is_dir() and not installed & {folder, *folder.parents}:
            config._py_driver_sys_path.append(str(folder))
    return config
