"""The whole page: parsed, complete, safe, and the same each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.report import RunData, build_report

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The page's elements, and whether they nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.within: dict[str, list[set[str]]] = {"figure": []}
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "figure":
            self.within["figure"].append(set())
        elif "figure" in self._open:
            self.within["figure"][-1].add(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module", params=["finished", "missed", "unfinished", "just started", "all failed", "three runs"])
def html(request: pytest.FixtureRequest, sample_run: Callable[..., RunData]) -> str:
    """Every kind of report."""
    unfinished = sample_run("unfinished", finished=False)
    failed = unfinished.evaluations.assign(status="nan", accuracy=np.nan, loss=np.nan, kl=np.nan)
    runs = {
        "finished": [sample_run()],
        "missed": [sample_run(in_window=False)],
        "unfinished": [unfinished],
        "just started": [replace(unfinished, evaluations=pd.DataFrame())],
        "all failed": [replace(unfinished, evaluations=failed)],
        "three runs": [sample_run("a"), sample_run("b", budget=0.7), unfinished],
    }
    return build_report(runs[request.param])


def test_every_figure_has_its_picture_and_its_table(html: str) -> None:
    figures = Page(html).within["figure"]
    assert figures
    assert all({"svg", "figcaption", "details", "table", "th"} <= tags for tags in figures)


def test_pictures_and_tables_are_accessible(html: str) -> None:
    elements = Page(html).elements
    assert all(one.get("role") == "img" and one.get("aria-label") for tag, one in elements if tag == "svg")
    assert all(one.get("scope") in ("col", "row") for tag, one in elements if tag == "th")
    assert sum(tag == "caption" for tag, _ in elements) == sum(tag == "table" for tag, _ in elements)
    assert [one.get("lang") for tag, one in elements if tag == "html"] == ["en"]


def test_it_asks_nothing_of_the_network_and_runs_nothing(html: str) -> None:
    assert not re.search(r"https?://|//[a-z]|@import|javascript:", html)
    elements = Page(html).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")]
        target = attributes.get("href") or attributes.get("src") or "#"
        assert target.startswith(("#", "data:"))


def test_identifiers_are_unique_and_every_link_leads_somewhere(html: str) -> None:
    elements = Page(html).elements
    known = [one["id"] for _, one in elements if "id" in one]
    assert len(known) == len(set(known))
    assert {one["href"] for tag, one in elements if tag in ("a", "use")} <= {f"#{name}" for name in known}


def test_the_same_runs_give_the_same_page(sample_run: Callable[..., RunData]) -> None:
    runs = [sample_run("a"), sample_run("b", finished=False)]
    assert build_report(runs) == build_report(runs)


def renamed(value: Any) -> Any:
    """The structure with an evil text in place of every text and of every key that is a layer's name."""
    if isinstance(value, dict):
        return {
            f"{EVIL}{key}" if "." in key or key in ("conv1", "linear") else key: renamed(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [renamed(one) for one in value]
    return f"{EVIL}{value}" if isinstance(value, str) and value != "accuracy" else value


@pytest.mark.parametrize("amount", [1, 2])
def test_names_of_others_are_escaped_everywhere(sample_run: Callable[..., RunData], amount: int) -> None:
    run = sample_run()
    texts = {name: EVIL + run.evaluations[name].astype(str) for name in ("search", "worker", "reason", "changed")}
    evil = RunData(EVIL, renamed(run.config), renamed(run.space), renamed(run.result), run.evaluations.assign(**texts))
    page = build_report([evil] * amount)
    assert "<script" not in page
    assert EVIL in " ".join(Page(page).text)


def test_runs_of_one_name_are_told_apart(sample_run: Callable[..., RunData]) -> None:
    titles = "".join(Page(build_report([sample_run(), sample_run()])).text)
    assert "resnet20 (2)" in titles


def test_an_unfinished_run_shows_what_there_is(sample_run: Callable[..., RunData]) -> None:
    text = "".join(Page(build_report([sample_run(finished=False)])).text)
    assert "This run is unfinished" in text
    assert "The search, level by level" in text
    assert "rank so far" in text


def test_many_candidates_do_not_make_a_large_page(sample_run: Callable[..., RunData]) -> None:
    run = sample_run()
    few = run.evaluations
    many = pd.concat([few] * (40_000 // len(few) + 1), ignore_index=True)
    random = np.random.default_rng(0)
    for column in ("compression_parameters", "compression_macs", "compression_volume", "accuracy"):
        many[column] = random.random(len(many))
    page = build_report([replace(run, evaluations=many)])
    assert len(page) < 1_500_000
    text = "".join(Page(page).text)
    assert re.search(r"Of 3\d,\d{3} scored candidates|Of 4\d,\d{3} scored candidates", text)
    assert "rows were left out of this page" in text


def test_a_report_needs_a_run() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        build_report([])
