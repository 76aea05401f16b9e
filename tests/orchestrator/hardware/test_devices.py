"""The `devices` and `timing` blocks: what they mean, and every mistake in them as one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.loading import check_config, dump_config, parse_mapping
from orchestrator.config.schema import Config
from orchestrator.hardware.devices import THIS_MACHINE, device_named, devices_of
from search_spaces.errors import ConfigError
from tests.orchestrator.digits_run import digits_config
from workers.timing.contract import Device


def config(**blocks: Any) -> Config:
    return check_config({**digits_config(Path("net.pt")), **blocks}, "config")


def test_a_device_is_what_the_config_says() -> None:
    block = {
        "backend": "onnxruntime",
        "resource": "jetson_orin",
        "labels": {"device": "orin"},
        "cores": [4, 5],
        "threads": 2,
        "accelerator": "cuda:0",
        "precision": "float16",
        "options": {"provider": "tensorrt"},
        "time_limit_s": 30,
    }
    assert devices_of(config(devices={"orin": block}).devices) == {
        "orin": Device(
            name="orin",
            backend="onnxruntime",
            resource="jetson_orin",
            labels={"device": "orin"},
            cores=(4, 5),
            threads=2,
            accelerator="cuda:0",
            precision="float16",
            options={"provider": "tensorrt"},
            time_limit_s=30.0,
        )
    }


def test_without_devices_there_is_this_machines_processor() -> None:
    assert devices_of(config().devices) == {THIS_MACHINE: Device(name=THIS_MACHINE, backend="torch")}


def test_a_config_with_devices_reads_back_to_itself() -> None:
    whole = config(devices={"a": {"cores": [0]}}, timing={"table": "s3://bucket/latency", "protocol": {"load": 1.0}})
    assert check_config(parse_mapping(dump_config(whole), "dumped"), "dumped") == whole


def test_the_protocols_numbers_can_be_set() -> None:
    timing = config(timing={"confidence": 0.05, "protocol": {"blocks": 30}}).timing
    assert timing.rules == {"half_width": 0.05, "blocks": 30.0}


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ({"devices": {"a": {"backnd": "torch"}}}, r"^devices\.a\.backnd: unknown key; did you mean 'backend'\?$"),
        ({"devices": {"a": {"threads": 0}}}, r"^devices\.a\.threads: .*greater than or equal to 1"),
        ({"devices": {"a": {"cores": [0, 0]}}}, r"^devices\.a\.cores: names a core twice"),
        ({"devices": {"a": {"cores": [-1]}}}, r"^devices\.a\.cores\.0: "),
        ({"devices": {"a": {"cores": [0], "threads": 2}}}, r"^devices\.a: 2 threads do not fit on 1 cores"),
        ({"devices": {"a": {"precision": "int8"}}}, r"^devices\.a\.precision: "),
        ({"devices": {"a": {"accelerator": "cuda 0"}}}, r"^devices\.a\.accelerator: "),
        ({"devices": {"a": {"time_limit_s": 0}}}, r"^devices\.a\.time_limit_s: "),
        ({"devices": {"../a": {}}}, r"^devices: '\.\./a' is no name of a device"),
        ({"devices": ["a"]}, r"^devices: .*mapping"),
        ({"timing": {"tabel": "x"}}, r"^timing\.tabel: unknown key; did you mean 'table'\?$"),
        ({"timing": {"confidence": 1.5}}, r"^timing\.confidence: "),
        ({"timing": {"batch_size": 0}}, r"^timing\.batch_size: "),
        ({"timing": {"protocol": {"blocks": "many"}}}, r"^timing\.protocol\.blocks: "),
    ],
)
def test_mistakes_are_named(blocks: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(**blocks)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^devices\.a\.backend: unknown .*; did you mean 'onnxruntime'"):
        devices_of(config(devices={"a": {"backend": "onnxruntim"}}).devices)


def test_an_unknown_device_is_told_which_there_are() -> None:
    devices = devices_of(config(devices={"orin": {}, "host": {}}).devices)
    assert device_named(devices, "orin", "search.budget").name == "orin"
    with pytest.raises(ConfigError, match=r"^search\.budget: unknown device 'v100'; `devices:` has host, orin$"):
        device_named(devices, "v100", "search.budget")
