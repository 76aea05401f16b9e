"""Search methods by name, and what it costs to look one up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.searches.mbs import MBS
from orchestrator.searches.registry import search_methods
from search_spaces.errors import ConfigError


def test_mbs_is_known() -> None:
    assert search_methods().get("mbs", "search.method") is MBS


def test_an_unknown_method_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^search.method: unknown search method 'msb'; did you mean 'mbs'\?$"):
        search_methods().get("msb", "search.method")


def test_searches_are_imported_without_torch_and_ray() -> None:
    loaded = "import sys, orchestrator.searches.registry; print(*{'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
