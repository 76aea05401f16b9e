"""Evaluators on GPUs: how many fit, and what is said where Ray counts a GPU that is none."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from orchestrator.ray_cluster import Cluster, Node
from search_spaces.errors import ConfigError
from tests.cluster.nodes import end_session, environ, free_port, start_node
from tests.orchestrator.digits_run import digits_config, save_digits_network

RANKRAY = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def cluster(*nodes: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Of nodes with so many CPUs and GPUs."""
    found = []
    for number, (cpus, gpus) in enumerate(nodes):
        resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        found.append(Node(str(number), "127.0.0.1", resources, resources, {}))
    monkeypatch.setattr(Cluster, "nodes", lambda _self: found)
    return Cluster()


@pytest.mark.parametrize(
    ("nodes", "threads", "gpus", "fit"),
    [
        ([(16, 2), (8, 0)], 1, 0.0, 24),
        ([(16, 2), (8, 0)], 1, 1.0, 2),
        ([(16, 2), (8, 1)], 1, 0.5, 6),
        ([(16, 2)], 1, 0.6, 2),  # no evaluator has parts of two GPUs
        ([(16, 1)], 1, 0.1, 10),  # ten tenths are a whole
        ([(16, 1)], 2, 0.1, 8),  # CPUs are the bottleneck
        ([(16, 1.5)], 1, 0.5, 3),  # somebody else has half a GPU
    ],
)
def test_evaluators_fit_where_both_cpus_and_gpus_are(
    nodes: list[tuple[float, float]], threads: int, gpus: float, fit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cluster(*nodes, monkeypatch=monkeypatch)
    assert here.evaluators_that_fit(threads, gpus) == fit
    here.check_evaluators(fit, threads, gpus)
    with pytest.raises(ConfigError, match=f"^cluster.evaluators: .* hold at most {fit}; ask for {fit} or `auto`"):
        here.check_evaluators(fit + 1, threads, gpus)


def test_gpus_that_no_node_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cluster((4, 0), (2, 0), monkeypatch=monkeypatch)
    with pytest.raises(ConfigError) as refused:
        here.check_evaluators("auto", 1, 1.0)
    assert str(refused.value) == (
        "cluster.gpus_per_evaluator: no node has room for an evaluator of 1 thread and 1 GPU: 2 nodes with 4, 2 CPUs "
        "and 0, 0 GPUs; set 0 to score on CPUs, or add a node whose GPUs Ray counts (`ray start --num-gpus`)"
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the names of Unix sockets below it may have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.cluster
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_torch_cannot_use_is_refused_in_one_line(folder: Path) -> None:
    port, environment = free_port(), environ(folder, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    options = (
        f"--head --port={port} --num-cpus=2 --num-gpus=1 --temp-dir={folder}/ray --include-dashboard=false --block"
    )
    settings = digits_config(save_digits_network(folder))
    settings["cluster"] = {"address": f"127.0.0.1:{port}", "evaluators": 2, "gpus_per_evaluator": 0.5}
    (folder / "search.yaml").write_text(yaml.safe_dump(settings))
    head = start_node(folder, "head", options, environment)
    try:
        done = subprocess.run(
            [*RANKRAY, "search", "search.yaml", "--run-dir", "run"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    finally:
        end_session(head)
    assert done.returncode == 2, done.stderr
    assert "cluster.gpus_per_evaluator: Ray gave an evaluator a GPU that its torch" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
