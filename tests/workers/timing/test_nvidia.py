"""NVIDIA cards, by answers of nvidia-smi as its documentation has them; no card is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from workers.timing.contract import State
from workers.timing.nvidia import NvidiaCard, parse_query

H100 = "NVIDIA H100 80GB HBM3, 550.54.15, 1980, 2619, 41, 3, 0x0000000000000000, 1980, 700.00\n"


def _card(answer: str) -> NvidiaCard:
    return NvidiaCard("cuda:0", ask=lambda card: parse_query(answer))


def test_a_card_s_state() -> None:
    card = _card(H100)
    assert card.model == "NVIDIA H100 80GB HBM3"
    assert card.driver == "550.54.15"
    assert card.read() == State(1980.0, 41.0, 0.03, "application clock 1980 MHz, power limit 700.00 W", False)


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [("0x0000000000000004", False), ("0x0000000000000008", True), ("0x0000000000000020", True), ("0x40", True)],
)
def test_it_is_held_back_by_heat_and_brakes_not_by_its_power_cap(reasons: str, throttled: bool) -> None:
    assert _card(H100.replace("0x0000000000000000", reasons)).read().throttled is throttled


def test_what_a_card_does_not_say_is_unknown() -> None:
    answer = "Quadro, 550.54.15, 1980, 2619, 41, [N/A], [Not Supported], [N/A], [N/A]"
    assert _card(answer).read() == State(1980.0, 41.0)


@pytest.mark.parametrize("answer", ["", "No devices were found\n", "a, b\n"])
def test_no_card_is_an_unknown_state(answer: str) -> None:
    assert _card(answer).read() == State()


def test_nvidia_smi_is_not_asked_at_every_glance() -> None:
    asked = 0

    def ask(card: str) -> Mapping[str, str]:
        nonlocal asked
        asked += 1
        return parse_query(H100)

    now = [0.0]
    card = NvidiaCard("cuda:0", ask=ask, clock=lambda: now[0])
    for seconds in (0.0, 0.1, 0.19, 0.21, 0.4, 0.5):
        now[0] = seconds
        assert card.glance().clock_mhz == 1980.0
    assert asked == 3


def test_a_machine_without_nvidia_smi_has_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert NvidiaCard("cuda:0").read() == State()


@pytest.mark.parametrize("known", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_old_and_new_drivers_are_asked_in_their_own_words(
    known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$*" in *{known}.active*) echo "{H100.strip()}";; *) exit 2;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert NvidiaCard("cuda:0").read().clock_mhz == 1980.0
