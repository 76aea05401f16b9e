"""Progress: where one search stands, and where several on the same evaluators do."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from orchestrator.progress import Snapshot, Standing, show_progress

AHEAD = Standing("ahead", 7, 0.25, "cross_entropy", 0.4, 0.5, left_s=20.0)
BEHIND = Standing("behind", 2, 0.75, "accuracy", 0.1, 0.5, left_s=90.0)
ENDED = Standing("ended", 9, 0.875, "accuracy", 0.5, 0.5, left_s=0.0, done=True)


def shown(*searches: Standing, terminal: bool = False, recorded: int = 0, stopped: int = 0) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, no_color=True)
    with show_progress(console) as observer:
        observer.update(Snapshot(1234, stopped, recorded, 45.67, 2, searches))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_search_is_a_line_of_its_facts() -> None:
    assert shown(AHEAD, recorded=10) == (
        "level 7, scored 1,234 (+ 10 recorded before), per second 45.7, best cross_entropy 0.2500, "
        "compression 0.4000 of 0.5000, evaluators 2, time left about 20 s\n"
    )


def test_of_several_the_one_that_is_waited_for_is_named() -> None:
    assert shown(AHEAD, BEHIND, ENDED, stopped=99) == (
        "searches done 1 of 3, scored 1,234, stopped early 99, per second 45.7, evaluators 2, time left about 1 min "
        "30 s; furthest behind: behind, level 2, best accuracy 0.7500, compression 0.1000 of 0.5000\n"
    )


def test_when_all_are_done_nobody_is_waited_for() -> None:
    assert "furthest" not in shown(ENDED, ENDED)


@pytest.mark.parametrize(("name", "stands"), [("ahead", "level 7"), ("behind", "level 2"), ("ended", "done")])
def test_on_a_terminal_each_has_a_row(name: str, stands: str) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(AHEAD, BEHIND, ENDED, terminal=True))
    assert re.search(rf"{name} +{stands}", text), text
