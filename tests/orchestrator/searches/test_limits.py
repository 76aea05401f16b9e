"""How budgets are written: every form, what it means, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.loading import check_config, dump_config, parse_mapping, read_config
from orchestrator.searches.limits import limit_of, normalised
from search_spaces.budgets import Limit
from search_spaces.errors import ConfigError

BATCH = 8


def limits(budget: dict[str, Any]) -> list[Limit]:
    return [limit_of(name, bound, BATCH) for name, bound in normalised(budget).items()]


def on(device: str, value: float, kind: Any) -> Limit:
    return Limit(f"latency@{device}", value, kind, "ms", exact=True)


@pytest.mark.parametrize(
    ("budget", "meant"),
    [
        ({"parameters": 0.5}, [Limit("parameters", 0.5, "ratio")]),
        ({"macs": "3e7"}, [Limit("macs", 3e7, "absolute")]),
        (
            {"latency": {"orin": "10 ms", "v100": "800us"}, "macs": 0.5},
            [on("orin", 10, "absolute"), on("v100", 0.8, "absolute"), Limit("macs", 0.5, "ratio")],
        ),
        ({"latency": {"orin": "2 s"}}, [on("orin", 2000, "absolute")]),
        ({"latency": {"orin": "0.5 ms"}}, [on("orin", 0.5, "absolute")]),
        ({"latency": {"orin": 0.5}}, [on("orin", 0.5, "ratio")]),
        ({"latency_ms": {"orin": 10}}, [on("orin", 10, "absolute")]),
        ({"latency_ms": {"orin": 0.25}}, [on("orin", 0.25, "absolute")]),
        ({"throughput": {"orin": "500/s"}}, [on("orin", 1e3 * BATCH / 500, "absolute")]),
        ({"throughput": {"orin": "4x"}}, [on("orin", 0.75, "ratio")]),
        ({"latency@orin": "10 ms"}, [on("orin", 10, "absolute")]),
    ],
)
def test_every_form_means_a_limit(budget: dict[str, Any], meant: list[Limit]) -> None:
    assert limits(budget) == meant


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "is empty; give at least one limit, as in {parameters: 0.5}"),
        ({"latency": {}}, "is empty; "),
        ({"latency": "10 ms"}, "latency needs the device that it is measured on, as in {latency: {cpu0: 10 ms}}"),
        ({"latency": {"orin": 10}}, "latency@orin = 10 is no limit; write a time with its unit (10 ms, 800 us), or "),
        ({"latency": {"orin": "10 mm"}}, "latency@orin = 10 mm is no limit; "),
        ({"latency": {"orin": "0 ms"}}, "latency@orin = 0 ms is no limit; "),
        ({"latency": {"orin": "-1 ms"}}, "latency@orin = -1 ms is no limit; "),
        ({"latency": {"orin": "1e999 ms"}}, "latency@orin = 1e999 ms is no limit; "),
        ({"latency": {"orin": None}}, "latency@orin = None is no limit; "),
        ({"throughput": {"orin": 500}}, "throughput@orin = 500 is no limit; write samples per second (500/s), or "),
        ({"throughput": {"orin": "0.5x"}}, "throughput@orin = 0.5x is no limit; "),
        (
            {"latency": {"orin": "10 ms"}, "throughput": {"orin": "500/s"}},
            "orin is limited twice; give the tighter limit alone",
        ),
        ({"parameters": True}, "parameters = True is no number; "),
        ({"parameters": [1]}, "parameters = [1] is no number; "),
    ],
)
def test_a_mistake_says_what_would_be_right(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as wrong:
        normalised(budget)
    assert str(wrong.value).startswith(message)


NUMBERS = st.floats(1e-3, 1e6).map(lambda number: f"{number:g}")
BOUNDS = st.one_of(
    st.tuples(st.just("latency"), st.one_of(NUMBERS.map(lambda n: f"{n} ms"), st.floats(0.01, 0.99))),
    st.tuples(st.just("throughput"), NUMBERS.map(lambda n: f"{n}/s")),
)


@given(st.dictionaries(st.sampled_from(["orin", "v100", "cpu0"]), BOUNDS, min_size=1), st.booleans())
def test_the_flat_form_reads_as_itself(bounds: dict[str, tuple[str, Any]], static: bool) -> None:
    budget: dict[str, Any] = {"macs": 0.5} if static else {}
    for device, (kind, bound) in bounds.items():
        budget.setdefault(kind, {})[device] = bound
    flat = normalised(budget)
    assert normalised(flat) == flat
    assert limits(flat) == limits(budget)


def test_a_config_with_limits_on_devices_reads_back_as_itself() -> None:
    raw = {
        "model": {"build": "workers.models:digits_cnn"},
        "data": {"train": {"dataset": "workers.digits:digits"}},
        "search": {"method": "mbs", "budget": [{"latency": {"orin": "10 ms"}}, {"parameters": 0.5}]},
        "timing": {"batch_size": 4},
        "devices": {"orin": {}},
    }
    config = check_config(raw, "test")
    assert check_config(parse_mapping(dump_config(config), "dump"), "dump") == config
    assert [limit.cost for limit in config.limits] == ["latency@orin", "parameters"]
    with pytest.raises(ConfigError, match=r"^search\.budget: latency needs the device"):
        check_config({**raw, "search": {"method": "mbs", "budget": {"latency": 0.5}}}, "test")


def test_a_throughput_counts_the_configs_batches() -> None:
    raw = {
        "model": {"build": "workers.models:digits_cnn"},
        "data": {"train": {"dataset": "workers.digits:digits"}},
        "search": {"method": "alds", "budget": {"throughput": {"cpu": "500/s"}}},
        "timing": {"batch_size": 4},
    }
    assert [limit.value for limit in check_config(raw, "test").limits] == [8.0]


@pytest.mark.parametrize("name", ["resnet20_latency", "resnet18_latency"])
def test_the_examples_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANKRAY_DATA", "IMAGENET"):
        monkeypatch.setenv(variable, "/somewhere")
    config = read_config(Path(__file__).parents[3] / "examples" / f"{name}.yaml")
    assert [limit.cost for limit in config.limits] == ["latency@cpu"]
    assert set(config.devices) == {"cpu"}
