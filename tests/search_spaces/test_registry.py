"""Things by name: the project's own, those of other packages, and the nearest name to a wrong one."""

from __future__ import annotations

import pathlib
import sys

import pytest

from search_spaces.errors import ConfigError
from search_spaces.registry import Registry, nearest


@pytest.fixture
def installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another distribution on the path that offers two entry points: one that imports and one that does not."""
    information = tmp_path / "thirdparty-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[rankray.shapes]\n"
        "hexagon = thirdparty_shapes:HEXAGON\n"
        "broken = thirdparty_shapes:MISSING\n"
        "round = json:loads\n"
    )
    (tmp_path / "thirdparty_shapes.py").write_text("HEXAGON = 6\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "thirdparty_shapes", raising=False)


def _shapes() -> Registry[int]:
    return Registry("rankray.shapes", "shape", {"triangle": 3, "round": 0})


def test_a_built_in_by_name() -> None:
    assert _shapes().get("triangle", "search.shape") == 3


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^search\.shape: unknown shape 'triangel'; did you mean 'triangle'\?$"):
        _shapes().get("triangel", "search.shape")


@pytest.mark.usefixtures("installed")
class TestEntryPoints:
    """What another package registers."""

    def test_is_found_by_its_name(self) -> None:
        assert "hexagon" in _shapes().names()
        assert _shapes().get("hexagon", "search.shape") == 6

    def test_is_imported_only_when_asked_for(self) -> None:
        _shapes().get("triangle", "search.shape")
        assert "thirdparty_shapes" not in sys.modules

    def test_does_not_hide_a_built_in(self) -> None:
        assert _shapes().get("round", "search.shape") == 0

    def test_that_does_not_import_is_named_with_its_reason(self) -> None:
        with pytest.raises(ConfigError, match="shape 'broken' does not import: AttributeError"):
            _shapes().get("broken", "search.shape")


class TestNearest:
    """The clause that follows "unknown"."""

    def test_a_close_name(self) -> None:
        assert nearest("beam_sice", ["beam_size", "step"]) == "; did you mean 'beam_size'?"

    def test_the_choice_where_none_is_close(self) -> None:
        assert nearest("zzz", ["step", "beam_size"]) == "; known: beam_size, step"

    def test_not_hundreds_of_names(self) -> None:
        known = [f"layer{index:03}" for index in range(300)]
        clause = nearest("zzz", known)
        assert clause.startswith("; known: layer000, ")
        assert clause.endswith(", ...")
        assert len(clause) < 200

    def test_nothing_where_nothing_is_known(self) -> None:
        assert nearest("zzz", []) == ""
