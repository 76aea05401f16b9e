"""Puts a device's hardware actor where the device is.

Actors count for no CPUs or GPUs in Ray's books: the lease is the lock. Devices that share cores (one processor under
three backends) take turns, and an actor does not wait for evaluators to end; what they do to a measurement shows in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from orchestrator.ray_cluster import Cluster, Node
from search_spaces.errors import ConfigError
from workers.timing.contract import Device
from workers.timing.hardware_actor import CONCURRENCY, HardwareActor

__all__ = ["check_placeable", "start_actor"]

_NODE_ID = "ray.io/node-id"
_BOOKKEEPING = ("memory", "object_store_memory")


def start_actor(cluster: Cluster, device: Device, run: str, rules: Mapping[str, Any]) -> Any:
    """The handle of a new hardware actor; it starts once the cluster has room for it.

    Args:
        run: written beside its leases.
        rules: fields of `protocol.Rules` that are not as they come.

    Raises:
        ConfigError: no node can ever hold it.
    """
    placed = _placed(device)
    check_placeable(cluster, device)
    # `cuda:1` is the node's second card, whichever Ray shows to others: the lease keeps them off that very card.
    all_cards = {} if device.accelerator == "cpu" else {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
    actor: Any = ray.remote(HardwareActor)
    return actor.options(
        num_cpus=0,
        max_concurrency=CONCURRENCY,
        max_restarts=0,
        max_task_retries=0,
        resources={placed.resource: 1} if placed.resource else {},
        label_selector=dict(placed.labels),
        runtime_env={"env_vars": all_cards} if all_cards else None,
    ).remote(device, run, rules)


def check_placeable(cluster: Cluster, device: Device) -> None:
    """Returns if some node can hold the device's actor once it is idle; Ray would wait forever and say nothing.

    Raises:
        ConfigError: none can; what the nodes offer is named.
    """
    placed, nodes = _placed(device), cluster.nodes()
    key = f"devices.{device.name}"
    if placed.resource and not any(node.total.get(placed.resource, 0) >= 1 for node in nodes):
        raise ConfigError(
            f"{key}.resource",
            f"no node offers {placed.resource!r}; {_offers(nodes)}; start the device's node with "
            f"`ray start --resources='{{\"{placed.resource}\": 1}}'`",
        )
    labelled = [node for node in nodes if all(node.labels.get(name) == value for name, value in placed.labels.items())]
    if not labelled:
        wanted = ", ".join(f"{name}={value}" for name, value in placed.labels.items())
        raise ConfigError(f"{key}.labels", f"no node has {wanted}; {_labels(nodes)}")
    if placed.resource and not any(node.total.get(placed.resource, 0) >= 1 for node in labelled):
        there = f"{_offers(nodes)}; {_labels(nodes)}"
        raise ConfigError(key, f"no node has both {placed.resource!r} and its labels; {there}")


def _placed(device: Device) -> Device:
    """The device, on this process's own node if it names none: a device without a place is the machine at hand."""
    if device.resource or device.labels:
        return device
    return dataclasses.replace(device, labels={_NODE_ID: ray.get_runtime_context().get_node_id()})


def _offers(nodes: Sequence[Node]) -> str:
    return "; ".join(f"{node.address} offers {_resources(node)}" for node in nodes)


def _resources(node: Node) -> str:
    shown = [name for name in node.total if name not in _BOOKKEEPING and not name.startswith("node:")]
    return ", ".join(f"{node.total[name]:g} {name}" for name in sorted(shown)) or "nothing"


def _labels(nodes: Sequence[Node]) -> str:
    def own(node: Node) -> str:
        return ", ".join(f"{name}={value}" for name, value in node.labels.items() if not name.startswith("ray.io/"))

    return "; ".join(f"{node.address} has {own(node) or 'no labels of its own'}" for node in nodes)
