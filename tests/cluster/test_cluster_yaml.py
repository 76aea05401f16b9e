"""cluster.yaml: Ray takes it, the cluster it makes asks for a token, and its commands are commands that Ray has."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def text(project: Path) -> str:
    return (project / "cluster.yaml").read_text()


@pytest.fixture
def raw(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)


def ray_options(command: str) -> dict[str, Any]:
    """What Ray's own parser makes of the `ray start` in a shell command; it refuses unknown options."""
    arguments = shlex.split(command.split("ray start", 1)[1])
    parsed: click.Context = ray_start.make_context("ray start", arguments)
    return parsed.params


def start_command(raw: dict[str, Any], key: str) -> str:
    (command,) = [command for command in raw[key] if "ray start" in command]
    return command


def jetson_command(text: str) -> str:
    """The command that joins a board, from the comments at the end of the file."""
    (line,) = re.findall(r"^#   (ray start .*jetson.*)$", text, re.MULTILINE)
    return line


def test_ray_accepts_it(raw: dict[str, Any]) -> None:
    validate_config(prepare_config(raw))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"max_workers": -1}, "-1 is less than the minimum"),
        ({"max_worker": 2}, "'max_worker' was unexpected"),
        ({"head_node_type": "boss"}, "must be one of `available_node_types`"),
    ],
)
def test_ray_refuses_a_broken_copy(raw: dict[str, Any], broken: dict[str, Any], complaint: str) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError), match=complaint):
        validate_config(prepare_config({**copy.deepcopy(raw), **broken}))


def test_ray_refuses_a_node_type_without_node_config(raw: dict[str, Any]) -> None:
    del raw["available_node_types"]["cpu"]["node_config"]

    with pytest.raises(jsonschema.ValidationError, match="node_config"):
        validate_config(prepare_config(raw))


def test_it_has_a_head_and_workers_with_and_without_gpu(raw: dict[str, Any]) -> None:
    types = prepare_config(raw)["available_node_types"]

    assert set(types) == {"head", "cpu", "gpu"}
    assert raw["head_node_type"] == "head"
    assert types["cpu"]["min_workers"] >= 1, "a search counts the evaluators that fit when it starts"
    assert types["cpu"]["max_workers"] + types["gpu"]["max_workers"] <= raw["max_workers"]


@pytest.mark.parametrize("key", START_COMMANDS)
def test_every_node_starts_with_token_authentication(raw: dict[str, Any], key: str) -> None:
    before, _ = start_command(raw, key).split("ray start", 1)

    assert "export RAY_AUTH_MODE=token;" in before


def test_the_token_travels_as_a_private_file_and_is_not_in_the_config(raw: dict[str, Any], text: str) -> None:
    assert raw["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in raw["setup_commands"])
    assert "RAY_AUTH_TOKEN=" not in text
    assert not re.search(r"[0-9a-f]{32}", text)


def test_rankray_is_installed_with_the_tested_versions(raw: dict[str, Any]) -> None:
    assert any(re.search(r"pip install .*-e \. -c constraints\.txt", command) for command in raw["setup_commands"])


def test_the_head_shows_its_dashboard_to_itself_only(raw: dict[str, Any]) -> None:
    options = ray_options(start_command(raw, "head_start_ray_commands"))

    assert options["head"]
    assert options["dashboard_host"] == "127.0.0.1"
    assert options["disable_usage_stats"]


def test_workers_join_the_port_that_the_head_listens_on(raw: dict[str, Any]) -> None:
    head = ray_options(start_command(raw, "head_start_ray_commands"))
    worker = ray_options(start_command(raw, "worker_start_ray_commands"))

    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"


def test_a_jetson_joins_as_one_lockable_board_with_a_small_object_store(raw: dict[str, Any], text: str) -> None:
    options = ray_options(jetson_command(text))

    assert json.loads(options["resources"]) == {"jetson": 1}
    assert options["labels"] == "device=jetson-orin"
    assert (options["num_cpus"], options["num_gpus"]) == (1, 1)
    assert options["object_store_memory"] <= 256 * 2**20
    assert options["address"].endswith(f":{ray_options(start_command(raw, 'head_start_ray_commands'))['port']}")
